"""Kronecker-factored Fisher of every candidate layer, streamed from any loader; labels are not needed.

For ``y = W x`` the KL divergence between teacher and student grows by about
``1/2 || G^(1/2) dW S^(1/2) ||_F^2`` (Martens & Grosse 2015; for convolutions Grosse & Martens 2016, eq. 31),
with ``S = E[x x^T]`` averaged over samples and positions and ``G = E[sum over positions of g g^T]``,
``g`` a gradient of the log-likelihood under the teacher's own prediction; with labels it would be the empirical Fisher
(Kunstner et al. 2019). Instead of drawing a class, which gives mostly small gradients and a few huge ones, ``g`` starts
from a random square root of the Fisher of the outputs (`fisher.py`): same expectation, a quarter of the samples. The
layer that gives the logits itself gets their Fisher as it is: from one gradient a sample, all but as many of a thousand
classes would seem free.

Both are needed only as seen from the smaller side of ``W`` (`specs.Curvature`): ``W S W^T`` is the second
moment of the layer's own output without its bias, ``W^T G W`` that of ``g W``. So a 3 x 3 convolution of 2,048
channels costs a 2,048-square matrix, never one of 18,432.
"""

import weakref
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.curvature.fisher import Probing, exact_fisher, fisher_probe, fisher_trace
from hypercompress.errors import ModelError, NonFiniteError, no_batch
from hypercompress.factorize import add_second_moment, input_curvature, mirror, squared, traces
from hypercompress.kinds import by_group, known_kind
from hypercompress.running.calling import (
    ForwardFn,
    Progress,
    call_model,
    device_of,
    evaluating,
    exactly,
    first_argument,
    frozen,
    unwritten,
)
from hypercompress.running.hooks import hooked
from hypercompress.running.nested import flat
from hypercompress.running.outputs import class_axis, logits_of, require_gradient, require_real_rows
from hypercompress.specs import Curvature, LayerSpec, ModelSpec, Side

UNREACHED = "no gradient reaches it (a detach, torch.no_grad, a hard choice or a dropped output behind it)"
DOMINANT = 1e3  # times the variance: squared means of which float32 keeps too little of the variance


@dataclass
class _Sums:
    """Running sums of one layer; at least float32, on the model's device, divided once at the end.

    Rows are summed about the mean of the first ones: of inputs far from zero float32 would keep the distance alone.
    """

    signal: Tensor
    fisher: Tensor
    mean: Tensor
    rows: int = 0
    origin: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Rows of what the layer reads or gives."""
        if rows.shape[-2] == 0:
            return
        rows = rows.to(self.signal.dtype)
        self.origin = rows.mean(-2) if self.origin is None else self.origin
        rows = rows - self.origin[..., None, :]
        add_second_moment(self.signal, rows)
        self.mean += rows.sum(-2)
        self.rows += rows.shape[-2]

    def moments(self) -> tuple[Float[Tensor, "*g m m"], Float[Tensor, "*g m"]]:
        """Second moment about zero, and mean; in float64 where the mean is nearly all of the moment."""
        assert self.origin is not None  # the example called it, and so did a batch
        mirror(self.signal)
        near = self.mean.double() / self.rows
        variance, mean = self.signal.double() / self.rows - squared(near), near + self.origin.double()
        far = bool((mean.square().sum(-1) > DOMINANT * traces(variance)).any())
        dtype = torch.float64 if far else self.signal.dtype
        return (variance + squared(mean)).to(dtype), mean.to(dtype)


class _Given:
    """What a layer gave, known again by where it lies: of a view no more than what it is of stays alive."""

    def __init__(self, output: Tensor) -> None:
        root, self.place, self.axes = _lying(output)
        self.root = weakref.ref(root)

    def untouched(self, output: Tensor) -> bool:
        """Whether it is that, unchanged, maybe with its axes in another order."""
        root, place, axes = _lying(output)
        return self.root() is root and self.place == place and sorted(self.axes) == sorted(axes)


def _lying(tensor: Tensor) -> tuple[Tensor, tuple[int, int], list[tuple[int, int]]]:
    """What it is a view of (or itself), its version and where it begins, and length and stride of each axis."""
    root = tensor if tensor._base is None else tensor._base
    place = tensor._version, int(tensor.storage_offset())
    return root, place, list(zip(tensor.shape, tensor.stride(), strict=True))


class _Recorder:
    """Hooks of one layer, at all of its paths: its signal on the way forward, its Fisher on the way back."""

    def __init__(self, layer: LayerSpec, module: nn.Module, anchor: Tensor) -> None:
        self.layer, self.anchor, self.kind = layer, anchor, known_kind(module)
        self.weight = self.kind.matrix(module)
        of_groups, m = self.weight.shape[:-2], layer.full_rank
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        zeros = self.weight.new_zeros(*of_groups, m, m, dtype=dtype)
        self.sums = _Sums(zeros, zeros.clone(), zeros.new_zeros(*of_groups, m))
        c = layer.channels if layer.projects else 0
        self.inputs = _Sums(zeros.new_zeros(c, c), zeros.new_zeros(0), zeros.new_zeros(c))
        self.columns = zeros.new_zeros(layer.d if c else 0)
        self.gradients = 0  # backward passes that came here
        self.apart = False  # whether what asks for a gradient need not hang on the anchor: the batch itself does
        self.calls, self.exact = 0, 0  # so far, and which of them gave the output whose Fisher is known
        self.logits = False  # whether one did
        self.given: _Given | None = None  # by the last call

    def forward(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return output  # no gradient comes here, as behind a detach
        x = first_argument(args, named)
        with torch.no_grad(), exactly(self.anchor):
            if self.layer.side is Side.OUTPUT:
                rows, bias = self.kind.rows(output), getattr(module, "bias", None)
                rows = by_group(rows - bias if isinstance(bias, Tensor) else rows, self.layer.groups)
            else:
                rows = self.kind.input_rows(module, x)
            self.sums.add(rows)
            channels = self.kind.input_channels(module, x) if self.layer.projects else None
            if channels is not None and len(channels):  # no sample came to an expert: the mean of none is NaN
                self.inputs.add(channels)
                self.columns += self.kind.input_mean(module, x).to(self.columns.dtype) * len(rows)
        # Adding zero changes no value and puts the output on a graph that starts at the anchor, so that the
        # backward pass needs gradients neither of the (frozen) parameters nor of the (perhaps integer) input.
        if self.apart or not (isinstance(x, Tensor) and x.requires_grad and output.requires_grad):
            output = output + self.anchor
        self.calls += 1
        output.register_hook(partial(self.backward, call=self.calls))
        self.given = _Given(output)
        return output

    def ends(self, output: Tensor, temperature: float) -> None:
        """Add the Fisher of the model's output, if that is what this layer gave, untouched and class by class."""
        logits, self.exact = logits_of(output), 0
        if logits is None or self.given is None or not self.given.untouched(output) or self.layer.groups > 1:
            return
        given, (_, _, axes) = self.given.axes, _lying(output)
        if (given[0], given[self.layer.axis % output.ndim]) == (axes[0], axes[class_axis(output)]):
            self.exact, self.logits = self.calls, True
            with exactly(self.anchor):
                fisher = exact_fisher(logits, temperature).to(self.sums.fisher.dtype)
                weight = self.weight.to(fisher.dtype)
                self.sums.fisher += fisher if self.layer.side is Side.OUTPUT else weight.T @ fisher @ weight

    def backward(self, gradient: Tensor, call: int) -> None:
        self.gradients += 1
        if call == self.exact:
            return
        rows = by_group(self.kind.rows(gradient.detach()), self.layer.groups)
        with exactly(self.anchor):
            if self.layer.side is Side.INPUT:
                rows = rows.to(self.weight.dtype) @ self.weight  # under autocast gradients are not of its dtype
            add_second_moment(self.sums.fisher, rows.to(self.sums.fisher.dtype))

    @property
    def reached(self) -> bool:
        """Whether it saw rows and gradients: without, a Fisher of zero would say that nothing depends on the layer."""
        return self.sums.rows > 0 and self.gradients > 0

    def finish(self, scale: float) -> Curvature:
        """The means; ``scale`` makes one of the summed Fisher."""
        sums = self.sums
        weight = self.weight.to(sums.signal.dtype)
        gram = weight @ weight.mT if self.layer.side is Side.OUTPUT else weight.mT @ weight
        mirror(sums.fisher)
        fisher, read = sums.fisher * scale, self.inputs
        inputs = input_curvature(weight, fisher @ weight, self.layer.taps, *read.moments()) if read.rows else None
        columns = self.columns / sums.rows if read.rows else None
        signal, mean = sums.moments()
        return Curvature(self.layer.side, signal, fisher, gram, mean, inputs, columns, logits=self.logits)


def reached(spec: ModelSpec, measured: Collection[str]) -> ModelSpec:
    """The spec in which the candidates without a curvature stay dense.

    Args:
        measured: names of those that `measure` found one of.
    """
    return spec.without({layer.name for layer in spec.candidates if layer.name not in measured}, UNREACHED)


class _Gradients:
    """Draws gradients at the output of each batch, which the recorders hear of on the way back."""

    def __init__(self, recorders: Collection[_Recorder], anchor: Tensor, probing: Probing, seed: int) -> None:
        self.recorders, self.anchor, self.probing = recorders, anchor, probing
        self.generator = torch.Generator().manual_seed(seed)
        self.traces = [0.0, 0.0]  # of the Fisher of all outputs as they are, and softened

    def draw(self, output: Tensor) -> None:
        draws, temperature = self.probing.draws, self.probing.temperature
        for recorder in self.recorders:
            recorder.ends(output, temperature)
        if temperature != 1:
            self.traces[0] += float(fisher_trace(output.detach()))
            self.traces[1] += float(fisher_trace(output.detach(), temperature))
        for left in reversed(range(draws)):
            probe = fisher_probe(output, self.generator, temperature) / draws**0.5
            try:
                probe.backward(inputs=[self.anchor], retain_graph=left > 0)
            except RuntimeError as error:
                if "use_reentrant" not in str(error):
                    raise
                raise ModelError(
                    "received a model that checkpoints its activations in evaluation mode with use_reentrant=True, "
                    "where torch refuses the gradients that are asked for; expected none, or use_reentrant=False; "
                    "pass that to torch.utils.checkpoint, or switch checkpointing off (of a timm model "
                    "set_grad_checkpointing(False))"
                ) from error

    @property
    def nats(self) -> float:
        """What a Fisher of softened outputs is multiplied by; 1 where either is too small for float32.

        Zero would say that nothing depends on any layer, and leave the ranks to chance.
        """
        true, softened = self.traces
        return true / softened if min(true, softened) > 0 else 1.0


def measure(
    model: nn.Module,
    spec: ModelSpec,
    batches: Iterable[Any],
    *,
    forward_fn: ForwardFn | None = None,
    probing: Probing | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Curvature]:
    """Curvature of the candidate layers of ``spec`` from one pass over ``batches``; of none that no gradient reaches.

    Args:
        model: the teacher; run in evaluation mode and left as it was.
        batches: whatever ``forward_fn`` takes, on the model's device; consumed once, nothing kept.
        probing: how gradients are drawn; ``None``: one of each sample.
        seed: of the random signs.
        progress: called with a phase name and the number of samples seen so far.

    Raises:
        DataError: ``batches`` is empty. NonFiniteError: NaN or infinity in a batch or in the model's output.
        ModelError: the model writes into its input, or checkpoints its activations by reentrant passes, or see
            `require_real_rows` and `require_gradient`.
    """
    forward_fn = forward_fn or call_model
    modules = dict(model.named_modules())
    anchor = torch.zeros((), device=device_of(model), requires_grad=True)
    recorders = {layer.name: _Recorder(layer, modules[layer.name], anchor) for layer in spec.candidates}
    gradients = _Gradients(recorders.values(), anchor, probing or Probing(), seed)
    count = 0
    handles = [
        modules[path].register_forward_hook(recorders[layer.name].forward, with_kwargs=True)
        for layer in spec.candidates
        for path in layer.paths
    ]
    with hooked(handles), evaluating(model), frozen(model), torch.enable_grad():
        for batch in batches:
            asks = any(isinstance(value, Tensor) and value.requires_grad for value in flat(batch))
            for recorder in recorders.values():
                recorder.apart = asks
            with unwritten(batch):
                output = forward_fn(model, batch)
            require_real_rows(output)
            if not output.isfinite().all():
                raise NonFiniteError(
                    f"received NaN or infinity in the model's output for samples {count} to "
                    f"{count + len(output) - 1}; expected finite values; check the calibration data"
                )
            if recorders:
                require_gradient(output)
                gradients.draw(output)
            count += len(output)
            if progress is not None:
                progress("curvature", count)
    if count == 0:
        raise no_batch("calibration")
    with exactly(anchor):
        return {
            name: recorder.finish(gradients.nats / count) for name, recorder in recorders.items() if recorder.reached
        }
