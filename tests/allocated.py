"""Layers and models as allocation sees them."""

from hypercompress.specs import LayerSpec, ModelSpec, Status


def layer(name: str, out: int, d: int, positions: int = 1) -> LayerSpec:
    return LayerSpec(name, "linear", Status.FACTORED, "", out, d, positions, out * d, 0, False)


def model_of(layers: list[LayerSpec], fixed: int = 0) -> ModelSpec:
    return ModelSpec(
        tuple(layers),
        sum(item.dense_params for item in layers) + fixed,
        sum(item.dense_macs for item in layers) + fixed,
        (),
    )
