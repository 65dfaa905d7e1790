"""Layers that cannot simply be replaced: packed in another, holding one weight, or called by a reference."""
