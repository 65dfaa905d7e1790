"""How a model is run: a batch of any kind in, one tensor out, in evaluation mode."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hypercompress.alone import drawing, unfused
from hypercompress.errors import HypercompressError, ModelError, listed
from hypercompress.running.nested import flat
from hypercompress.running.outputs import tensor_of

ForwardFn = Callable[[nn.Module, Any], Tensor]


@runtime_checkable
class Progress(Protocol):
    """Told how far long work is: the phase, how many samples or layers are done and, of layers, which is at hand."""

    def __call__(self, phase: str, done: int, at: str = ..., /) -> None: ...


def call_model(model: nn.Module, batch: Any) -> Tensor:
    """Default ``forward_fn``: a tensor is passed as it is, of a tuple the first item, of a dict the keywords. What it
    gives is read by `outputs.tensor_of`.

    Raises:
        ModelError: the model takes no such keywords, returned no or several tensors, or wrote into the batch.
    """
    with unwritten(batch):
        if isinstance(batch, Mapping):
            output = _by_keywords(model, batch)
        elif isinstance(batch, (tuple, list)):
            output = model(batch[0])
        else:
            output = model(batch)
    return tensor_of(output, "pass forward_fn=lambda model, batch: ... that picks it")


def precision(model: nn.Module) -> torch.dtype:
    """What the model wants its images in: a student may be saved in another floating dtype than float32. That of the
    first real parameter; whole and complex numbers say nothing of it.
    """
    return next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), torch.float32)


def device_of(model: nn.Module) -> torch.device:
    """Where a model lies."""
    return next(model.parameters()).device


def placed(tensor: Tensor, model: nn.Module) -> Tensor:
    """Images on the model's device, in its `precision`."""
    return tensor.to(device_of(model), precision(model))


def single_(model: nn.Module) -> torch.dtype:
    """Cast a model in half precision to single, in place, to be trained: AdamW's steps overflow in float16, and are
    lost in bfloat16. Returns the precision that it had, to be saved in.
    """
    own = precision(model)
    if own.itemsize < torch.float32.itemsize:
        model.float()
    return own


def call_in_precision(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """`call_model` on images in the model's own precision: two models may differ in it."""
    return call_model(model, batch[0].to(precision(model)))


def taking(forward_fn: ForwardFn | None) -> ForwardFn:
    """A ``forward_fn`` that turns what a model raises on a batch that it does not take into a `ModelError`.

    Raises:
        ModelError: when called: from the model's own error, of inference mode with what to do about it. Lack of memory
            stays as it is.
    """

    def run(model: nn.Module, batch: Any) -> Tensor:
        with refused(lambda error: _untaken(batch, error)):
            return (forward_fn or call_model)(model, batch)

    return run


def _untaken(batch: Any, error: Exception) -> ModelError:
    """What a model raised on a batch, with what to do about it."""
    said = " ".join(str(error).split())
    if "nference tensor" in said:  # in all that torch says of them
        return ModelError(
            f"received a model that runs in torch.inference_mode ({said}); expected one that leaves its outputs to "
            "autograd and to versions; write torch.no_grad in its forward instead"
        )
    tensors = (value for value in flat(batch) if isinstance(value, Tensor))
    shapes = listed([f"{value.dtype} {list(value.shape)}" for value in tensors]) or type(batch).__name__
    return ModelError(
        f"received a batch of {shapes} that the model does not take ({type(error).__name__}: {said}); "
        "expected what it was trained on; check channels and size, turn whole numbers into real ones and "
        "normalise them as for training, or pass forward_fn=lambda model, batch: ... that calls it"
    )


@contextmanager
def refused(told: Callable[[Exception], HypercompressError]) -> Iterator[None]:
    """What a model raises inside the block on inputs that it does not take becomes what ``told`` makes of it.

    Raises:
        HypercompressError: of ``told``; or as it was raised. Lack of memory stays as it is, too.
    """
    try:
        yield
    except HypercompressError:
        raise
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        if out_of_memory(error):
            raise
        raise told(error) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was what lacked; on the CPU torch says so in words only."""
    words = ("can't allocate memory", "Storage size calculation overflowed")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in words)


def _by_keywords(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    try:
        return model(**batch)
    except TypeError as error:
        taken = inspect.signature(model.forward)
        try:
            taken.bind(**batch)
        except TypeError:
            raise ModelError(
                f"received a batch with the keys {', '.join(map(str, batch))} for a model of forward{taken}; expected "
                f"its keywords ({error}); pass forward_fn=lambda model, batch: ... that calls it"
            ) from error
        raise  # it comes from within the model


@contextmanager
def unwritten(batch: Any) -> Iterator[None]:
    """Nothing inside the block may write into the batch, which others read after it.

    Raises:
        ModelError: something did.
    """
    before = _versions(batch)
    yield
    if _versions(batch) != before:
        raise ModelError(
            "received a model that writes into its input; expected one that leaves it as it is, because each batch is "
            "read several times; pass forward_fn=lambda model, batch: model(batch.clone())"
        )


def _versions(batch: Any) -> list[int]:
    """How often each tensor was written into; tensors of inference mode do not count it."""
    return [value._version for value in flat(batch) if isinstance(value, Tensor) and not value.is_inference()]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[set[Tensor]]:
    """`switching`, and afterwards the model's buffers come back, too.

    torch's fused transformer layer is off: it calls no module, and packs padded batches into nested tensors.
    """
    with unfused(), switching(model) as written, restoring_buffers(model):
        yield written


@contextmanager
def switching(model: nn.Module) -> Iterator[set[Tensor]]:
    """Evaluation mode inside the block, and each module's own mode afterwards.

    A ``train`` of the model's own may write into weights, as LoRA layers do, which merge for evaluation. That is undone
    to the bit, except where the block wrote into them, too.

    Yields:
        the tensors that a ``train`` or ``eval`` writes into; not all of them before the block ends.
    """
    flags, before = [(module, module.training) for module in model.modules()], _switched(model)
    model.eval()
    merged = {t: (value, t.detach().clone()) for t, value in before.items() if not torch.equal(t, value)}
    del before  # copies of weights, which may be large
    written = set(merged)
    try:
        yield written
    finally:
        now = _switched(model)
        model.train()  # drops what LeViT and its kin keep from an evaluation pass, on the graph of that pass
        written |= {tensor for tensor, value in now.items() if not torch.equal(tensor, value)}
        for module, training in flags:  # parents first: they switch their parts
            if module.training != training and _switches(module):
                module.train() if training else module.eval()
        for module, training in flags:
            module.training = training
        for tensor, value in now.items():
            old, new = merged.get(tensor, (value, value))
            if not torch.equal(tensor, old) and (new is value or torch.equal(new, value)):
                tensor.detach().copy_(old)


def _switches(module: nn.Module) -> bool:
    """Whether it has a ``train`` or an ``eval`` of its own."""
    return any(getattr(getattr(module, n), "__func__", None) is not getattr(nn.Module, n) for n in ("train", "eval"))


def _switched(model: nn.Module) -> dict[Tensor, Tensor]:
    """Copies of what is in modules that switch by themselves, and in their parts."""
    modules = (module for module in model.modules() if _switches(module))
    held = dict.fromkeys(tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    plain = (t for t in held if not is_lazy(t) and t.layout is torch.strided and not (t.is_meta or t.is_inference()))
    return {tensor: tensor.detach().clone() for tensor in plain}


@contextmanager
def restoring_buffers(model: nn.Module) -> Iterator[None]:
    """What forward passes write into the model's buffers, such as counters, is undone after the block.

    A buffer that has another shape, type or device by then is a cache, of whose state the module may keep more: it
    stays.
    """
    held = [
        (module._buffers, name, buffer, buffer._version, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_inference()
    ]
    try:
        yield
    finally:
        for buffers, name, buffer, version, before in held:
            now = buffers[name] if name in buffers else None  # noqa: SIM401  (a scripted module's have no get)
            if now is None or (now.shape, now.dtype, now.device) != (before.shape, before.dtype, before.device):
                continue
            buffers[name] = buffer
            if buffer._version != version or _moments_changed(buffer, before):
                with torch.no_grad():
                    buffer.copy_(before)


def _moments_changed(buffer: Tensor, before: Tensor) -> bool:
    """torch's batch_norm writes running moments, which are plain vectors, without counting a version."""
    plain = buffer.layout is torch.strided and not buffer.is_meta and buffer.ndim == 1 and buffer.is_contiguous()
    return plain and not torch.equal(buffer, before)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside the block; then each does as before.

    So nothing is kept for such gradients, and torch's counter of operations does not fail on views of parameters.
    """
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.is_leaf]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def keeping_random_state(model: nn.Module) -> AbstractContextManager[None]:
    """What is drawn inside the block leaves torch's random state as it was, on the CPU and on the model's GPUs. One
    thread at a time is in such a block.
    """
    return drawing({parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"})


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor; a copy of one that was made in inference mode, which autograd cannot use."""
    return tensor.clone() if tensor.is_inference() else tensor


def first_argument(args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """What a module reads, however it was passed."""
    return (*args, *named.values())[0]


@contextmanager
def computing(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Inside the block the module gives ``forward(module, *args, **named)``; its hooks run as they did."""
    module.forward = partial(forward, module)
    try:
        yield
    finally:
        del module.forward


def exactly(like: Tensor) -> torch.autocast:
    """Inside the block torch.autocast casts nothing on the tensor's device: sums need more than half a precision."""
    return torch.autocast(like.device.type, enabled=False)
