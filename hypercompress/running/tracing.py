"""A forward pass of a model under hooks: which modules run, in what order, at how many positions, which norm reads
whose output, and who uses a module's parameters besides the module.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hypercompress.kinds import kind_of
from hypercompress.running.batches import resized
from hypercompress.running.calling import ForwardFn, evaluating, first_argument, frozen
from hypercompress.running.counting import counting
from hypercompress.running.hooks import hooked
from hypercompress.running.nested import Uncut, batch_size, flat
from hypercompress.running.outputs import require_tensor

# BatchNormAct2d and LayerNorm2d of timm are subclasses. Read only, so isinstance is enough.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
NORMS = (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# Functions that tell of a tensor what does not depend on its values.
LOOKS = {"size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "__len__", "__hash__"}
LOOKS |= {"is_floating_point", "is_complex", "element_size", "get_device"}


@dataclass
class Trace:
    """What one forward pass showed."""

    order: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    inputs: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    sources: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    rows: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # output positions of the whole batch
    producers: dict[int, tuple[str, int, int]] = field(default_factory=dict)  # output's id -> layer, version, channels
    readings: dict[str, set[str | None]] = field(default_factory=lambda: defaultdict(set))  # norm -> what it read
    read: set[str] = field(default_factory=set)  # layers whose output not only norms read
    feeders: dict[str, str] = field(default_factory=dict)
    readers: dict[str, str] = field(default_factory=dict)  # parameter -> who reads it besides those that hold it
    instructed: set[str] = field(default_factory=set)  # modules that got more than one argument
    transformed: set[str] = field(default_factory=set)  # layers that see what torch.vmap and its kin make of a batch
    keep: list[Any] = field(default_factory=list)  # tensors kept alive, so that an id means one tensor
    stack: list[str] = field(default_factory=list)
    last_norm: str | None = None
    norming: int = 0  # norms that are running
    missing: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # samples that a layer did not get
    run: int = 0  # multiply-accumulates of the pass
    short: dict[str, int] = field(default_factory=dict)  # those of layers for the samples that they did not get
    macs: int = 0  # of one sample, with these

    def enter(
        self, name: str, module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], batch: int
    ) -> None:
        """Before ``module`` runs."""
        self.stack.append(name)
        self.order.setdefault(name, len(self.order))
        kind, given = kind_of(module), (*inputs, *named.values())
        if len(given) > 1:
            self.instructed.add(name)
        if kind is not None and kind.spreads:
            read = given[0].numel() // given[0].shape[kind.axis_of(given[0])]
            self.sources[name] += max(1, read // batch)
            self.missing[name] += max(0, batch - read)
        if isinstance(module, NORMS):
            self.norming += 1
            self.readings[name].add(source := self._source(module, given[0]) if given else None)
            if source is None:
                self.reading(given)
        if isinstance(module, torch.jit.ScriptModule):  # whose functions no `_Reads` sees
            self.reading(given)
        if self.last_norm is not None:
            self.feeders.setdefault(name, self.last_norm)

    def _source(self, norm: nn.Module, x: Any) -> str | None:
        """The layer whose output ``norm`` reads, each channel with a scale of its own; ``None`` if it reads another."""
        source, version, axis = self.producers.get(id(x), (None, 0, 0))
        # An output that was changed in place since (an in-place activation) is no longer the layer's own.
        if source is None or x._version != version:
            return None
        # A BatchNorm scales axis 1, which is another than a linear layer's channels where there are positions. One that
        # takes the moments of the batch gives back by itself what truncation takes.
        scales = axis % x.ndim == 1 and not norm.training and getattr(norm, "running_var", None) is not None
        return source if scales or not isinstance(norm, BATCH_NORMS) else None

    def reading(self, values: Any) -> None:
        """Somebody reads these values, as no follower of a layer does."""
        self.read.update(self.producers[id(value)][0] for value in flat(values) if id(value) in self.producers)

    def leave(
        self, name: str, module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any, batch: int
    ) -> None:
        """After ``module`` ran."""
        self.stack.pop()
        if isinstance(module, NORMS):
            self.last_norm = name
            self.norming -= 1
        kind = kind_of(module)
        if isinstance(output, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(output):
            self.transformed.add(name)
        elif isinstance(output, Tensor) and kind is not None:
            self.producers[id(output)] = (name, output._version, kind.axis_of(output))
            self.keep.append(output)
            rows = output.numel() // output.shape[kind.axis_of(output)]
            # A layer may also run on something without a batch axis (a table of positions): never less than one.
            self.calls[name] += 1
            self.rows[name] += rows
            self.positions[name] += max(1, rows // batch)
            if not kind.spreads:
                self.missing[name] += max(0, batch - rows)
            x = first_argument(inputs, named)
            pixels = kind.input_channels(module, x) if isinstance(x, Tensor) else None
            self.inputs[name] += 0 if pixels is None else max(1, len(pixels) // batch)

    def correct(self, alone: "Trace", batch: int) -> None:
        """Count as one sample needs it what runs once for a batch, by a layer or by none, or in parts of the batch.

        Args:
            alone: of a pass of one sample. If this is no pass of ``batch`` such (routing, a forward that goes by the
                size of the batch), it says something of single layers at most.
        """
        once = {name for name, rows in self.rows.items() if rows == alone.rows.get(name)}
        each = {name for name, rows in self.rows.items() if rows == batch * alone.rows.get(name, 0)}
        # What is done once, and what is done for each sample, lies between these bounds.
        bounded = alone.run <= self.run <= batch * alone.run
        whole = bounded and self.rows.keys() == alone.rows.keys() and self.rows.keys() == once | each
        # A loop over the samples gives each call less than the batch, and yet all of it together.
        parts = {name for name in each - once if self.calls[name] != alone.calls[name]}
        if whole or (once and self.calls == alone.calls):
            self._take(self.rows if whole else once, alone)
            self.macs = alone.macs
        else:
            self._take(parts, alone)
            self.short = {name: macs for name, macs in self.short.items() if name not in parts}
            self.macs = (self.run + sum(self.short.values())) // batch

    def _take(self, names: Iterable[str], alone: "Trace") -> None:
        """Let these layers run at the positions that they run at for one sample."""
        for name in names:
            self.positions[name], self.inputs[name] = alone.positions[name], alone.inputs[name]
            if name in self.sources:
                self.sources[name] = alone.sources[name]

    def follower(self, name: str) -> str | None:
        """The norm that reads the output of layer ``name``, if nobody else does and it reads nothing else."""
        if name in self.read:
            return None
        found = [norm for norm, sources in self.readings.items() if name in sources]
        return found[0] if len(found) == 1 and len(self.readings[found[0]]) == 1 else None


class _Reads(TorchFunctionMode):
    """Notes what a torch function gets: parameters outside of their modules, and outputs of layers outside of norms."""

    def __init__(self, trace: Trace, owners: Mapping[int, Sequence[str]]) -> None:
        super().__init__()
        self.trace, self.owners = trace, owners

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **(kwargs or {})), getattr(func, "__name__", "")
        # Reading `.dtype` or `.shape` arrives here as a property getter and does no harm; `.T` or `.data` is a tensor.
        if name == "__get__" and not isinstance(result, Tensor):
            return result
        current = self.trace.stack[-1] if self.trace.stack else ""
        for value in flat((args, kwargs or {})):
            # A weight that is looked at is multiplied out in a student, which costs; a vector is there in any case.
            if id(value) in self.owners and (value.ndim > 1 or name not in LOOKS):
                self._read(self.owners[id(value)], current)
        # What returns the very tensor (`contiguous`, dropout in evaluation) passes it on to who reads it.
        if self.trace.norming == 0 and name not in LOOKS:
            self.trace.reading([value for value in flat((args, kwargs or {})) if value is not result])
        return result

    def _read(self, paths: Sequence[str], by: str) -> None:
        """A module reads a parameter: ``by`` is one of those that hold it, or another."""
        for path in paths if by not in {path.rpartition(".")[0] for path in paths} else ():
            self.trace.readers.setdefault(path, by or "the model itself")


def trace_pass(model: nn.Module, example: Any, forward_fn: ForwardFn) -> Trace:
    """Run the model on ``example`` in evaluation mode, and say what was seen. The model is left as it was.

    Of several samples the first runs alone, too: relative positions (Swin v2, XCiT), or a weight that is a product, are
    computed once for a batch, and would be counted as if its samples shared them.
    """
    trace, batch = _traced(model, example, forward_fn), batch_size(example)
    lengths = {len(value) for value in flat(example) if isinstance(value, Tensor) and value.ndim}
    if batch > 1 and lengths == {batch} and not isinstance(example, Uncut):
        with suppress(Exception):  # a model may be unable to run one sample; then the batch is all there is
            trace.correct(_traced(model, resized(example, 1), forward_fn), batch)
    return trace


def _traced(model: nn.Module, example: Any, forward_fn: ForwardFn) -> Trace:
    """What one pass shows."""
    trace, handles, batch = Trace(), [], batch_size(example)
    modules = {name: module for name, module in model.named_modules() if name}
    owners: dict[int, list[str]] = defaultdict(list)
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)].append(path)

    def before(name: str) -> Callable[..., None]:
        return lambda module, inputs, named: trace.enter(name, module, inputs, named, batch)

    def after(name: str) -> Callable[..., None]:
        return lambda module, inputs, named, output: trace.leave(name, module, inputs, named, output, batch)

    for name, module in modules.items():  # not by their own methods, which those of scripted modules refuse
        handles.append(nn.Module.register_forward_pre_hook(module, before(name), with_kwargs=True))
        handles.append(nn.Module.register_forward_hook(module, after(name), with_kwargs=True))
    with (
        hooked(handles),
        evaluating(model) as written,
        frozen(model),
        torch.no_grad(),
        counting() as counter,
        _Reads(trace, owners),
    ):
        output = forward_fn(model, example)
        require_tensor(output)
        trace.reading(output)
    for path in (path for tensor in written for path in owners.get(id(tensor), ())):
        trace.readers.setdefault(path, "the model's train() or eval()")
    trace.run, trace.short = counter.get_total_flops() // 2, _missing(trace, modules)
    trace.macs = (trace.run + sum(trace.short.values())) // batch
    return trace


def _missing(trace: Trace, modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """Multiply-accumulates of what layers did not run for: positions count as if all samples went to each expert."""
    short = {name: rows for name, rows in trace.missing.items() if rows}
    kinds = {name: kind_of(modules[name]) for name in short}
    return {name: short[name] * kind.matrix(modules[name]).numel() for name, kind in kinds.items() if kind}
