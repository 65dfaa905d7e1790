"""Sequential reconstruction: each factored layer is fitted to the inputs it really gets.

Truncation is optimal layer by layer, with the teacher's inputs. In the student every layer but the first gets inputs
that the layers before it have already changed. So teacher and student run side by side on the same images, layer by
layer, and with x what the student's layer gets and y what the teacher's layer gives, both factors become those of
reduced-rank regression (`factorize/regression.py`). Then, with ``h = R x``, the output factor and the intercept are

    E, c = argmin  mean || y - E h - c ||^2  +  ridge (s || E - E_0 ||^2 + || d - d_0 ||^2)

with ``E_0, c_0`` as they were, ``d = c + E m`` what is given at the mean ``m`` of h (``d_0`` likewise) and ``s`` the
mean eigenvalue of the covariance of h, before the student goes on with ``E h + c`` (asymmetric reconstruction, Zhang et
al. 2016, "Accelerating very deep convolutional networks", sec. 3.2; He et al. 2017, "Channel pruning", sec. 3.2). Ranks
stay, and so does the projection of the input channels where a layer is factored on both sides; and of a layer that sees
too few rows for its number of inputs the output factor alone is fitted. No gradient is needed.
As in the `kfac` generator half of the variance that a fit loses is given back. ``c`` goes into the bias or into the
BatchNorm behind; where neither is there, the fit goes through zero.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.factorize import balance, least_squares
from hypercompress.generator.protocol import Sketches
from hypercompress.generator.restoration import absorbs
from hypercompress.kinds import LayerKind, LowRank, factors_of, fill, known_kind, low_rank_layers, weight_of
from hypercompress.reconstruction.layer_regression import LayerRegression
from hypercompress.reconstruction.relay import Relay
from hypercompress.running.batches import join
from hypercompress.running.calibration import CalibrationSplit
from hypercompress.running.calling import ForwardFn, call_model, computing, evaluating, exactly, first_argument
from hypercompress.running.memory import finite, give_back
from hypercompress.specs import LayerSpec, ModelSpec, NormStatistics, Refit
from hypercompress.student import Student

RIDGE = 1e-2  # of the mean eigenvalue of E[h h^T] and E[x x^T]; between 1e-3 and 1e-1 little changes (LOG.md)
LARGEST_OUTPUT = 3 * 2**24  # elements of one layer's output during reconstruction: 192 MiB in float32
LARGE_OUTPUT = 2**22  # elements from which on what a fit leaves in memory is given back: 16 MiB
SPREAD = 0.5  # share of the lost log standard deviation that is given back


def refit_batch(spec: ModelSpec, split: CalibrationSplit) -> Any:
    """The calibration samples that students are refitted on: as many as the largest output allows."""
    largest = max((layer.positions * layer.out for layer in spec.candidates), default=1)
    return join(split.statistics, max(2, LARGEST_OUTPUT // largest))


@torch.no_grad()
def reconstruct(  # noqa: PLR0913  (each has a default)
    teacher: nn.Module,
    student: Student,
    spec: ModelSpec,
    sketches: Sketches,
    batch: Any,
    forward_fn: ForwardFn | None = None,
    *,
    both: bool = True,
    ridge: float = RIDGE,
    spread: float = SPREAD,
) -> Mapping[str, Refit]:
    """Fit the factors of ``student`` on ``batch``, in place, by one forward pass of each network.

    What a generator had changed in the norms behind the factored layers moves into ``E_0`` and ``c_0`` first; of the
    norms only the biases differ from the teacher's afterwards. A layer that runs several times stays as it is:
    one fit cannot suit all of its inputs. So does one that only one of the two networks runs, or that gets another
    number of samples than the teacher's (routing).

    Args:
        teacher: what the student was made of; not modified.
        spec, sketches: the teacher's.
        batch: images in one batch; as many as memory takes.
        both: fit both factors; else the output factor alone, for comparison and where directions are to be learned.
        ridge: weight of what was there, as a share of the mean eigenvalue of the inputs' second moment.
        spread: share of the lost log standard deviation that is given back, in [0, 1].

    Returns:
        What was fitted of every factored layer, by dotted path.
    """
    forward_fn = forward_fn or call_model
    factored = low_rank_layers(student.model)
    layers = [layer for layer in spec.candidates if layer.name in factored and layer.calls == 1]
    fits: dict[str, _Fit] = {}
    with ExitStack() as stack:
        stack.enter_context(evaluating(teacher))
        stack.enter_context(evaluating(student))
        relay = Relay(lambda: forward_fn(teacher, batch), [layer.name for layer in layers])
        for layer in layers:
            free, shift = absorbs(layer, sketches[layer.name]), None
            if free and not layer.bias:
                shift = _take_over(student.model, layer, factored[layer.name], sketches[layer.name].follower)
            dense = teacher.get_submodule(layer.name)
            fits[layer.name] = fit = _Fit(layer, known_kind(dense), relay, (ridge, spread), shift, free=free)
            if both:
                fit.regression = LayerRegression(layer, dense, sketches[layer.name], ridge, centred=free)
            leading = dense.register_forward_hook(relay.hook(layer.name))
            stack.callback(leading.remove)
            stack.enter_context(computing(factored[layer.name], fit))
        torch.clear_autocast_cache()  # of casts of what was written into above
        stack.enter_context(relay)
        forward_fn(student, batch)
    for layer in layers:
        # A fit of one of the factors has undone their equal norms: the same product, easier to train.
        fill(factored[layer.name], balance(factors_of(factored[layer.name])), None)
        shift, norm = fits[layer.name].shift, sketches[layer.name].follower
        if shift is not None:
            assert norm is not None  # absorbs() holds, and there is no bias
            scale = norm.weight / (norm.variance + norm.eps).sqrt()
            student.model.get_parameter(f"{layer.follower}.bias").add_(scale * shift)
    torch.clear_autocast_cache()
    return {name: fits[name].fitted if name in fits else Refit.NONE for name in factored}


def _take_over(
    model: nn.Module, layer: LayerSpec, module: LowRank, old: NormStatistics | None
) -> Float[Tensor, " out"]:
    """Move what differs between the norm behind a layer and the teacher's into the layer; returns the intercept.

    ``g'/s (E h - m) + b'  =  g/s (E_0 h + c_0 - m) + b``  with ``E_0 = g'/g E``, ``c_0 = (1 - g'/g) m + (b' - b) s/g``.
    """
    assert old is not None  # absorbs() holds, and there is no bias
    weight, bias = (model.get_parameter(f"{layer.follower}.{name}") for name in ("weight", "bias"))
    alive = old.weight.abs() > 1e-12  # a dead channel keeps its factor: nothing that it says is heard
    gain = torch.where(alive, weight / old.weight, torch.ones_like(weight))
    deviation = (old.variance + old.eps).sqrt()
    shift = torch.where(
        alive, (1 - gain) * old.mean + (bias - old.bias) * deviation / old.weight, torch.zeros_like(bias)
    )
    expand = weight_of(module.expand)
    expand.mul_(gain.reshape(-1, *[1] * (expand.ndim - 1)))
    weight.copy_(old.weight)
    bias.copy_(old.bias)
    return shift


class _Fit:
    """Forward of one factored layer of the student: takes the teacher's output, fits, and goes on with the fit.

    Args:
        kind: of the teacher's layer.
        weights: ridge and spread.
        shift: of the output before the norm behind it; ``None`` if there is a bias, or nothing to take an intercept.
        free: whether there is something to absorb an intercept.
    """

    def __init__(
        self,
        layer: LayerSpec,
        kind: LayerKind,
        relay: Relay,
        weights: tuple[float, float],
        shift: Tensor | None,
        *,
        free: bool,
    ) -> None:
        self.layer, self.kind, self.relay = layer, kind, relay
        self.weights, self.shift, self.free = weights, shift, free
        self.regression: LayerRegression | None = None
        self.fitted, self.calls = Refit.NONE, 0
        self.generated: tuple[dict[str, Tensor], Tensor | None] = {}, shift

    def __call__(self, module: LowRank, *args: Any, **named: Any) -> Tensor:
        x: Tensor = first_argument(args, named)
        self.calls += 1
        with (
            self.relay.borrow(self.layer.name) as wanted,
            torch.no_grad(),
        ):  # some models differentiate in their forward
            reduced: Tensor = module.reduce(x)
            if wanted is not None and self.calls == 1 and self._alike(reduced, wanted) and wanted.numel():
                self.generated = {name: value.clone() for name, value in module.state_dict().items()}, self.shift
                reduced = self._refit(module, x, reduced, wanted)
                if wanted.numel() >= LARGE_OUTPUT:
                    give_back()  # what fits leave would lie beside the activations that follow
            elif self.fitted is not Refit.NONE:
                self._undo(module)
                reduced = module.reduce(x)
        if torch.is_grad_enabled():
            reduced = module.reduce(x)  # on the graph
        fitted: Tensor = module.expand(reduced)
        if self.shift is None:
            return fitted
        axis = self.kind.axis_of(fitted)
        return (fitted.movedim(axis, -1) + self.shift).movedim(-1, axis)

    def _undo(self, module: LowRank) -> None:
        """Back to the generated factors: its calls in one pass of this batch are several, or of unlike samples."""
        factors, self.shift = self.generated
        module.load_state_dict(factors)
        torch.clear_autocast_cache()
        self.fitted = Refit.NONE

    def _alike(self, reduced: Tensor, wanted: Tensor) -> bool:
        """Whether both layers give the same samples and positions."""
        one, other = (list(t.movedim(self.kind.axis_of(t), -1).shape[:-1]) for t in (reduced, wanted))
        return one == other

    def _refit(self, module: LowRank, x: Tensor, reduced: Tensor, wanted: Tensor) -> Tensor:
        """Fit both factors, or the output factor; returns what the input factor gives."""
        both = False
        if self.regression is not None and finite(x) and finite(wanted):
            with exactly(x):
                both = self.regression(module, x, wanted)
            torch.clear_autocast_cache()  # of casts of the factors as they were
            reduced = module.reduce(x) if both else reduced
        h, y = (self.kind.rows(t) for t in (reduced, wanted))
        if finite(h) and finite(y):
            with exactly(x):
                self._fit(module, h, y)
            torch.clear_autocast_cache()
            self.fitted = Refit.BOTH if both else Refit.OUTPUTS
        return reduced

    def _fit(self, module: LowRank, h: Float[Tensor, "n r"], y: Float[Tensor, "n out"]) -> None:
        weight = weight_of(module.expand)
        start, groups = module.bias if self.shift is None else self.shift, module.groups
        starts = [None] * groups if start is None or not self.free else start.chunk(groups)
        # Each group is a regression of its own outputs on its own reduced channels.
        parts = zip(h.chunk(groups, 1), y.chunk(groups, 1), weight.flatten(1).chunk(groups), starts, strict=True)
        fits = [least_squares(*part, *self.weights) for part in parts]
        expand, shift = (torch.cat(part) for part in zip(*fits, strict=True))
        weight.copy_(expand.reshape(weight.shape))
        if self.shift is not None:
            self.shift = shift.to(weight.dtype)
        elif module.bias is not None:
            module.bias.copy_(shift)
