"""The model as a program of ``torch.export``: one graph for every batch size, and a file of torch's own.

Shape letters: ``b`` inputs in a batch, any number when the program runs.
"""

import io
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from hypercompress.errors import ExportError, HypercompressError
from hypercompress.running.calling import out_of_memory

INDEXED = 2**28  # numbers in a batch that kernels take at least: 2^31 by indices of 32 bits, fewer by byte offsets


def trace(model: nn.Module, batch: Float[Tensor, "b ..."]) -> ExportedProgram:
    """The graph that the model runs on a batch [b, ...] of this shape, for any ``b``; it shares the model's tensors.

    Call it without gradients: where they are recorded, attention lays its output out in another way, and the ONNX
    exporter cannot take the graph apart any more.

    Args:
        batch: two inputs or more, because torch takes a size of 1 for a constant.

    Raises:
        ExportError: the model cannot be traced, or only for some batch sizes.
    """
    with (
        understood("a model that torch.export cannot trace", "a graph that is the same for every input and batch size"),
        quiet(),
        redirect_stderr(io.StringIO()),  # where torch prints as much of a graph as it got
    ):
        # A named dimension refuses any bound, and kernels of an accelerator set one (their indices have 32 bits).
        program = torch.export.export(model, (batch,), dynamic_shapes=({0: Dim.DYNAMIC},))
    require_any_batch(program)
    program.example_inputs = None  # else the batch would be stored in the file
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # a third of the graph, and it tells where this machine keeps its files
    return program


def require_any_batch(program: ExportedProgram) -> None:
    """Raises ExportError if the graph holds only up to a batch size that no kernel would set: the model branches on it,
    and other formats than torch's would compute the one branch for every size.
    """
    values = [(node.name, node.meta.get("val")) for node in program.graph.nodes]
    tensors = {name: value for name, value in values if isinstance(value, Tensor)}
    batch: Any = tensors[program.graph_signature.user_inputs[0]].shape[0]
    bound = program.range_constraints[batch.node.expr].upper
    shapes: list[list[Any]] = [list(tensor.shape) for tensor in tensors.values()]
    fixed = [[size for size in shape if isinstance(size, int)] for shape in shapes]
    largest = max(math.prod(some) for some, shape in zip(fixed, shapes, strict=True) if len(some) < len(shape))
    if bound * largest < INDEXED:
        raise ExportError(
            f"received a model that computes something else, or nothing, for more than {bound} inputs in a batch; "
            "expected the same for any number; take what depends on the batch size (x.shape[0], len(x)) out of forward"
        )


def write(program: ExportedProgram, file: Path) -> None:
    """Save the program as ``torch.export.load`` reads it, whatever the file is called."""
    # Into memory first: where a disk is full, torch's writer of files ends the whole process.
    content = io.BytesIO()
    torch.export.save(program, content)
    file.write_bytes(content.getbuffer())


def read(file: Path) -> nn.Module:
    """The program in a file that `write` made, ready to run."""
    with file.open("rb") as stream:
        return torch.export.load(stream).module()


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters log what they leave as it is and how they fail: nothing that the error raised does not say.

    onnxruntime's quantizer logs through the root logger, which thereby gets a handler that stays.
    """
    disabled, handlers = logging.root.manager.disable, list(logging.root.handlers)
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers


@contextmanager
def understood(received: str, expected: str) -> Iterator[None]:
    """Whatever an exporter raises becomes an `ExportError` that names its reason.

    Exporters run the model and third-party translations, so their errors have no common class. A disk or a memory that
    is full is no fault of the model.
    """
    try:
        yield
    except (HypercompressError, OSError):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise ExportError(
            f"received {received} ({reason(error)}); expected {expected}; try another format, or report it with the "
            "name of the model"
        ) from error


def reason(error: BaseException) -> str:
    """The first line of the error that began it all, at most 200 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
