"""What meta-training measures of a teacher before the first step, and that as plain tensors and text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from hypercompress.curvature import measure, reached
from hypercompress.inspection import inspect
from hypercompress.specs import Curvature, LayerSpec, ModelSpec, Side, Status

FIELDS = ("signal", "fisher", "gram", "mean", "columns")  # the tensors of a `Curvature`
INPUTS = "inputs."  # before the fields of `Curvature.inputs`


@dataclass(frozen=True)
class Statistics:
    """A teacher's layers, without times (`latency` keeps those), and the curvature of those that may be factored."""

    spec: ModelSpec
    curvatures: Mapping[str, Curvature]


def measure_statistics(teacher: nn.Module, batches: Sequence[Tensor], *, seed: int = 0) -> Statistics:
    """Inspect a teacher and measure its curvature on calibration images.

    Args:
        teacher: in evaluation mode and unpacked (`unpacking.unpack`).
        batches: calibration images, on the teacher's device.
        seed: of the random signs; see `curvature.measure`.

    Raises:
        DataError, ModelError, NonFiniteError: as `inspect` and `curvature.measure`.
    """
    spec = inspect(teacher, batches[0][:2])
    curvatures = measure(teacher, spec, batches, seed=seed)
    return Statistics(reached(spec, curvatures), curvatures)


def packed(statistics: Statistics) -> tuple[dict[str, Tensor], str]:
    """Tensors by ``field:layer``, contiguous and on the CPU, and the layers as JSON."""
    tensors = {}
    for layer, curvature in statistics.curvatures.items():
        parts = [("", curvature)] if curvature.inputs is None else [("", curvature), (INPUTS, curvature.inputs)]
        for prefix, part in parts:
            named = {field: getattr(part, field) for field in FIELDS}
            tensors.update({f"{prefix}{field}:{layer}": t for field, t in named.items() if t is not None})
    logits = [layer for layer, curvature in statistics.curvatures.items() if curvature.logits]
    text = json.dumps({**asdict(statistics.spec), "logits": logits})
    return {key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()}, text


def restored(tensors: Mapping[str, Tensor], text: str) -> Statistics:
    """What `packed` made.

    Raises:
        ValueError, TypeError, KeyError: the parts are no statistics, or do not belong together.
    """
    found: dict[str, Any] = json.loads(text)
    rows = [{**row, "status": Status(row["status"]), "shared": tuple(row["shared"])} for row in found["layers"]]
    layers = tuple(LayerSpec(**row) for row in rows)
    spec = ModelSpec(layers, found["params"], found["macs"], tuple(found["input_size"]))
    logits = found.get("logits", ())  # files of before 2026-11-28 do not say
    curvatures = {
        layer.name: replace(_curvature(tensors, layer.name, layer.side), logits=layer.name in logits)
        for layer in spec.candidates
    }
    return Statistics(spec, curvatures)


def _curvature(tensors: Mapping[str, Tensor], layer: str, side: Side) -> Curvature:
    def part(prefix: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        signal, fisher, gram, mean = (tensors[f"{prefix}{field}:{layer}"] for field in FIELDS[:-1])
        return signal, fisher, gram, mean

    inputs = Curvature(Side.INPUT, *part(INPUTS)) if f"{INPUTS}signal:{layer}" in tensors else None
    return Curvature(side, *part(""), inputs, tensors.get(f"columns:{layer}"))
