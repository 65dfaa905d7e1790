"""Layers that hold other layers or share weights: taken apart, or left as they are with the reason."""
