"""Where the hypernetwork starts from: the analytic generator that the sketches allow."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hypercompress.generator.analytic import ANALYTIC, AnalyticGenerator
from hypercompress.generator.lazy import OnDemand
from hypercompress.generator.prior import ROOM, curvature_bytes, guessed_inputs
from hypercompress.generator.protocol import Directions, Frames, Sketches
from hypercompress.running.calling import Progress
from hypercompress.specs import Curvature, LayerSpec, ModelSpec, Side, Sketch


@dataclass(frozen=True)
class Start:
    """The analytic start of one teacher, whatever the budget: ``kfac`` with measured curvature, ``prior`` without."""

    base: AnalyticGenerator
    curvatures: Mapping[str, Curvature]
    directions: Directions
    energies: Mapping[str, Float[Tensor, " m"]]
    inputs: Mapping[str, Float[Tensor, " c"]]

    @property
    def measured(self) -> bool:
        return not self.base.prior

    def without_directions(self) -> "Start":
        """What `corrected` reads; the directions, most of the memory, can go."""
        return replace(self, directions=Directions({}, {}), energies={}, inputs={})


def start_of(spec: ModelSpec, sketches: Sketches, progress: Progress | None = None) -> Start:
    """The start that the sketches allow; ``progress`` as in `AnalyticGenerator`."""
    measured = all(sketches[layer.name].curvature is not None for layer in spec.candidates)
    base = replace(ANALYTIC["kfac" if measured else "prior"], progress=progress)
    curvatures = base.curvatures(spec, sketches)
    known = base.directions(spec, sketches, curvatures)
    return Start(base, curvatures, known, base.energies(known.outputs), base.energies(known.inputs))


def corrected(spec: ModelSpec, sketches: Sketches, start: Start, changes: Mapping[str, Float[Tensor, " m"]]) -> Start:
    """A data-free start whose bare metric (diagonal by construction) is multiplied by ``exp(changes)`` per channel."""
    layers, guesses = {layer.name: layer for layer in spec.candidates}, start.curvatures

    def bent(name: str) -> Curvature:
        return _bent(layers[name], sketches[name], guesses[name], changes[name])

    curvatures = OnDemand(layers, bent, curvature_bytes, ROOM)
    known = start.base.directions(spec, sketches, curvatures)
    return Start(start.base, curvatures, known, start.base.energies(known.outputs), start.base.energies(known.inputs))


def _bent(layer: LayerSpec, sketch: Sketch, guess: Curvature, change: Float[Tensor, " m"]) -> Curvature:
    factor = change.to(guess.signal.device).double().exp().reshape(guess.bare.shape)
    if guess.side is Side.INPUT:  # written as a change, so that a factor of 1 leaves every bit as it is
        return replace(guess, signal=guess.signal + torch.diag_embed(guess.bare * (factor - 1)))
    gain, channels = guess.bare * factor, guess.inputs
    if channels is not None:
        channels = guessed_inputs(layer, sketch, gain, channels.signal, channels.mean)
    return replace(guess, fisher=torch.diag_embed(gain), inputs=channels)


def on_device(start: Start, device: torch.device, dtype: torch.dtype) -> Start:
    """A start whose frames lie on ``device`` in ``dtype``, curvature likewise, and energies in float64."""

    def frames(given: Frames) -> Frames:
        return {
            name: replace(
                frame,
                left=frame.left.to(device, dtype),
                right=frame.right.to(device, dtype),
                energy=frame.energy.to(device, torch.float64),
            )
            for name, frame in given.items()
        }

    def curvature(c: Curvature) -> Curvature:
        signal, fisher, gram, mean = (t.to(device, dtype) for t in (c.signal, c.fisher, c.gram, c.mean))
        inputs = None if c.inputs is None else curvature(c.inputs)
        columns = None if c.columns is None else c.columns.to(device, dtype)
        return replace(c, signal=signal, fisher=fisher, gram=gram, mean=mean, inputs=inputs, columns=columns)

    curvatures = {name: curvature(c) for name, c in start.curvatures.items()}
    energies, inputs = (
        {name: energy.to(device, torch.float64) for name, energy in part.items()}
        for part in (start.energies, start.inputs)
    )
    directions = Directions(frames(start.directions.outputs), frames(start.directions.inputs))
    return Start(start.base, curvatures, directions, energies, inputs)
