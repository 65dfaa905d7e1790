"""What a hypernetwork proposes for a teacher and a budget, in the form that gradients can pass."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from hypercompress.generator.emission import Emission, emit
from hypercompress.generator.hypernetwork import Hypernetwork, channel_changes, tokens_of
from hypercompress.generator.start import corrected, on_device
from hypercompress.meta.case import Case
from hypercompress.specs import Budget


def generate(
    network: Hypernetwork, case: Case, budget: Budget, *, measured: bool, refit: bool = False, strength: float = 1.0
) -> tuple[Emission, Float[Tensor, ""]]:
    """Emission with masks, and the curvature regression loss (zero with data).

    Args:
        measured: whether the curvature is that of images; else it is guessed from the weights.
        refit: whether the student will be refitted.
        strength: 0 is the analytic student, for comparison.
    """
    start, sketches = case.starts[measured], case.sketches[measured]
    outputs = network(tokens_of(case.spec, sketches, start, budget, refit), measured)
    regression = outputs.weight.new_zeros(())
    if not measured and strength > 0:
        changes = channel_changes(network, case.spec, sketches, start, outputs)
        regression = curvature_error(case, changes, outputs.weight)
        # The frames' own gradient is left out: eigenvectors of near-equal values have none worth following.
        with torch.no_grad():
            start = corrected(
                case.spec, sketches, start, {n: change.detach() * strength for n, change in changes.items()}
            )
            start = on_device(start, outputs.weight.device, torch.float32)
    return emit(case.spec, sketches, start, outputs.scaled(strength), budget, training=True), regression


def curvature_error(case: Case, changes: Mapping[str, Tensor], weight: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """How far corrected guesses are from measured curvature: log diagonals in each layer, log totals across layers."""
    errors, totals = [], []
    for layer in case.spec.candidates:
        guess, true = case.starts[False].curvatures[layer.name], case.starts[True].curvatures[layer.name]
        ours, theirs = guess.bare.flatten(), true.bare.flatten()
        floor = theirs.max() * 1e-4 + 1e-30
        target = (theirs.clamp_min(floor)).log() - ours.clamp_min(1e-30).log()
        miss = changes[layer.name] - target
        errors.append(((miss - miss.mean()).clamp(-4, 4) ** 2).mean())
        totals.append(case.starts[True].energies[layer.name].sum().clamp_min(1e-30).log())
    total = torch.stack(totals).to(weight.dtype)
    miss = weight - total
    return torch.stack(errors).mean() + ((miss - miss.mean()).clamp(-6, 6) ** 2).mean()
