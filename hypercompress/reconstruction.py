"""Sequential least-squares reconstruction: each factored layer learns its output factor on the inputs it really gets.

Truncation is optimal layer by layer, with the teacher's inputs. In the student every layer but the first gets inputs
that the layers before it have already changed. So teacher and student run side by side on the same images, layer by
layer: with ``h = R x`` what the student's layer has reduced and ``y`` what the teacher's layer gives, the output factor
and the intercept become

    E, c = argmin  mean || y - E h - c ||^2  +  ridge (|| E - E_0 ||^2 + || c - c_0 ||^2)

with ``E_0, c_0`` as generated, before the student goes on with ``E h + c`` (asymmetric reconstruction,
Zhang et al. 2016, "Accelerating very deep convolutional networks", sec. 3.2, with R kept; He et al. 2017, "Channel
pruning", sec. 3.2). No gradient is needed, and no metric: each output is its own regression on r inputs. As in the
`kfac` generator half of the variance that a fit loses is given back. ``c`` goes into the bias or the BatchNorm behind;
where neither is there, the fit goes through zero.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from queue import Empty, Queue
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.calling import ForwardFn, call_model, evaluating
from hypercompress.errors import ModelError
from hypercompress.factorize import balance
from hypercompress.generator.protocol import Sketches
from hypercompress.generator.restoration import absorbs
from hypercompress.kinds import LowRank, factors_of, fill
from hypercompress.specs import LayerSpec, ModelSpec, NormStatistics
from hypercompress.student import Student, low_rank_layers

RIDGE = 1e-2  # of the mean eigenvalue of E[h h^T]; between 1e-3 and 1e-1 the result is the same (LOG.md)
SPREAD = 0.5  # share of the lost log standard deviation that is given back


class _StoppedError(Exception):
    """Ends the teacher's forward pass early."""


class _Relay:
    """The teacher's forward pass in a thread of its own, one layer ahead of whoever takes its outputs."""

    def __init__(self, run: Callable[[], object]) -> None:
        self._slot: Queue[tuple[str | None, Any]] = Queue(maxsize=1)
        self._stopped = False
        self._thread = threading.Thread(target=self._lead, args=(run,), name="teacher", daemon=True)

    def _lead(self, run: Callable[[], object]) -> None:
        end: BaseException | None = None
        try:
            with torch.no_grad():  # grad mode belongs to a thread
                run()
        except _StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001  (handed to the thread that waits for it)
            end = error
        self._slot.put((None, end))

    def put(self, name: str, output: Tensor) -> None:
        """Called by the teacher: waits until the output before was taken."""
        if self._stopped:
            raise _StoppedError
        self._slot.put((name, output))

    def hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        """Forward hook of one layer of the teacher."""
        return lambda _module, _inputs, output: self.put(name, output)

    def take(self, name: str) -> Tensor:
        """The teacher's output of this call of the layer.

        Raises:
            ModelError: the two networks do not run the same layers in the same order. Whatever the teacher raised.
        """
        got, output = self._slot.get()
        if isinstance(output, BaseException):
            raise output
        if got != name:
            raise ModelError(f"received a student that runs {name} where its teacher runs {got}; expected one order")
        assert isinstance(output, Tensor)
        return output

    def __enter__(self) -> "_Relay":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        while self._thread.is_alive():
            try:
                self._slot.get_nowait()
            except Empty:
                self._thread.join(0.01)


@torch.no_grad()
def reconstruct(
    teacher: nn.Module,
    student: Student,
    spec: ModelSpec,
    sketches: Sketches,
    batch: Any,
    forward_fn: ForwardFn | None = None,
    *,
    ridge: float = RIDGE,
    spread: float = SPREAD,
) -> None:
    """Refit the output factors of ``student`` on ``batch``, in place, by one forward pass of each network.

    What a generator had changed in the norms behind the factored layers moves into ``E_0`` and ``c_0`` first; of the
    norms only the biases differ from the teacher's afterwards. A layer that runs several times stays as it is:
    one fit cannot suit all of its inputs.

    Args:
        teacher: what the student was made of; not modified.
        spec, sketches: the teacher's.
        batch: images in one batch; as many as memory takes.
        ridge: weight of what was generated, as a share of the mean eigenvalue of ``E[h h^T]``.
        spread: share of the lost log standard deviation that is given back, in [0, 1].

    Raises:
        ModelError: the two do not run the same layers in the same order.
    """
    forward_fn = forward_fn or call_model
    factored = low_rank_layers(student.model)
    layers = [layer for layer in spec.candidates if layer.name in factored and layer.calls == 1]
    fits: dict[str, _Fit] = {}
    with ExitStack() as stack:
        stack.enter_context(evaluating(teacher))
        stack.enter_context(evaluating(student))
        relay = _Relay(lambda: forward_fn(teacher, batch))
        for layer in layers:
            free, shift = absorbs(layer, sketches[layer.name]), None
            if free and not layer.bias:
                shift = _take_over(student.model, layer, factored[layer.name], sketches[layer.name].follower)
            fits[layer.name] = fit = _Fit(layer, relay, (ridge, spread), shift, free=free)
            leading = teacher.get_submodule(layer.name).register_forward_hook(relay.hook(layer.name))
            stack.callback(leading.remove)
            stack.callback(factored[layer.name].register_forward_hook(fit).remove)
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
    expand = module.expand.weight
    assert isinstance(expand, Tensor)
    expand.mul_(gain.reshape(-1, *[1] * (expand.ndim - 1)))
    weight.copy_(old.weight)
    bias.copy_(old.bias)
    return shift


class _Fit:
    """Forward hook of one factored layer of the student: takes the teacher's output, fits, and goes on with the fit.

    Args:
        weights: ridge and spread.
        shift: of the output before the norm behind it; ``None`` if there is a bias, or nothing to take an intercept.
        free: whether there is something to absorb an intercept.
    """

    def __init__(
        self, layer: LayerSpec, relay: _Relay, weights: tuple[float, float], shift: Tensor | None, *, free: bool
    ) -> None:
        self.layer, self.relay, self.weights, self.shift, self.free = layer, relay, weights, shift, free

    def __call__(self, module: LowRank, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        wanted = self.relay.take(self.layer.name)
        reduced: Tensor = module.reduce(inputs[0])
        h, y = (t.movedim(self.layer.axis, -1).flatten(0, -2) for t in (reduced, wanted))
        if h.isfinite().all() and y.isfinite().all():
            self._fit(module, h, y)
        fitted: Tensor = module.expand(reduced)
        if self.shift is None:
            return fitted
        return (fitted.movedim(self.layer.axis, -1) + self.shift).movedim(-1, self.layer.axis)

    def _fit(self, module: LowRank, h: Float[Tensor, "n r"], y: Float[Tensor, "n out"]) -> None:
        weight = module.expand.weight
        assert isinstance(weight, Tensor)
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


def least_squares(
    h: Float[Tensor, "n r"],
    y: Float[Tensor, "n out"],
    expand: Float[Tensor, "out r"],
    shift: Float[Tensor, " out"] | None,
    ridge: float,
    spread: float,
) -> tuple[Float[Tensor, "out r"], Float[Tensor, " out"]]:
    """``E`` and ``c`` of the module docstring from ``E_0`` and ``c_0``, in float64.

    Args:
        shift: ``None``: no intercept, the fit goes through zero and no variance is given back.
    """
    h, y = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (h, y))
    free = shift is not None
    start = y.new_zeros(y.shape[1]) if shift is None else shift.to(y.dtype)
    residual = y - h @ expand.to(h.dtype).T - start
    centre_h, miss = (h.mean(0), residual.mean(0)) if free else (h.new_zeros(h.shape[1]), torch.zeros_like(start))
    h, residual = h - centre_h, residual - miss
    moment, cross = (h.T @ h).double() / len(h), (h.T @ residual).double() / len(h)
    scale = moment.trace() / len(moment)
    # Where nothing comes in there is nothing to fit, and any ridge above zero will do.
    weight = torch.where(scale > 0, ridge * scale, torch.ones_like(scale))
    identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    change = torch.linalg.solve(moment + weight * identity, cross).T
    fitted = expand.double() + change
    if not free:
        return fitted, start.double()
    centre = start.double() + miss.double() / (1 + ridge) + expand.double() @ centre_h.double()
    before, after = y.var(0, correction=0).double(), ((fitted @ moment) * fitted).sum(1)
    ratio = (before.clamp_min(1e-12) / after.clamp_min(1e-12)).clamp(0.25, 4.0)
    fitted = fitted * ratio[:, None] ** (spread / 2)
    return fitted, centre - fitted @ centre_h.double()
