"""Lookups that tests share."""

from hypercompress.specs import LayerSpec, ModelSpec


def row(spec: ModelSpec, name: str) -> LayerSpec:
    """The layer of this name."""
    return next(layer for layer in spec.layers if layer.name == name)
