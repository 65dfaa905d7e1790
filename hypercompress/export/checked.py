"""``export``: a model to a file that is run, compared with the model and measured before it takes its name.

Shape letters: ``b`` inputs in a batch.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import ExportedProgram

from hypercompress.architecture import own_input_size
from hypercompress.data import expanded
from hypercompress.errors import ExportError, ModelError, NonFiniteError, one_line
from hypercompress.export import onnx_file, program
from hypercompress.export.int8 import NOISE, Int8, quantize
from hypercompress.report import bytes_of
from hypercompress.running.calling import evaluating, placed, refused
from hypercompress.running.copying import as_written, weights_of
from hypercompress.saved.whole_file import whole_file
from hypercompress.student import network_of

FORMATS = ("onnx", "torch-export")
ENDINGS = {".onnx": "onnx", ".pt2": "torch-export"}
OTHERS = frozenset(  # endings that promise a format of other programs, or weights alone
    {
        *(".engine", ".plan", ".trt", ".tflite", ".mlmodel", ".mlpackage", ".pb", ".h5", ".keras", ".xml", ".ort"),
        *(".pt", ".pth", ".pte", ".ptl", ".ckpt", ".safetensors", ".bin", ".tar", ".pkl"),
        *(".ts", ".torchscript", ".jit", ".ptc"),
    }
)
BATCH_SIZES = (1, 3)  # that the file is compared at; it is traced at another
TOLERANCE = 1e-4  # of the largest output, or of 1 where all outputs are smaller
HALF_TOLERANCE = 1e-2  # in an ONNX file of half precision, which rounds by 1e-3, and not where torch does
GRAPH_SHARE, GRAPH_BYTES = 0.1, 2**20  # what a file may have beyond the weights: folded tables, names, operations


@dataclass(frozen=True)
class Exported:
    """What was written and how it compares.

    Args:
        format: ``onnx`` or ``torch-export``.
        file: its path.
        bytes: its size.
        student_bytes: parameters and buffers of the model.
        max_difference: largest |float file - model| over all outputs, over max(1, largest |output|).
        batch_sizes: that it was compared at.
        seconds: time of all of this.
        int8: what eight bits did; ``None`` for a float file.
    """

    format: str
    file: str
    bytes: int
    student_bytes: int
    max_difference: float
    batch_sizes: tuple[int, ...]
    seconds: float
    int8: Int8 | None = None

    def as_json(self) -> dict[str, Any]:
        """The object that ``hypercompress export --json`` prints."""
        return asdict(self)


def export(
    model: nn.Module,
    file: str | Path,
    format: str | None = None,  # noqa: A002 - the word of the command line
    *,
    input_size: Sequence[int] | None = None,
    int8: bool = False,
    data: Iterable[Any] | None = None,
    overwrite: bool = False,
    seed: int = 0,
) -> Exported:
    """Write a model as one file for any batch size, run it and compare; keep it only if the outputs are the model's.

    Args:
        model: a `Student`, or any module from one float tensor [b, ...] to one tensor [b, ...]; not modified. What was
            compiled counts as it was written.
        file: path to write. It appears whole or not at all.
        format: ``onnx`` (onnxruntime and others; input ``input``, output ``output``) or ``torch-export``
            (``torch.export.load``; for the device that the model is on); ``None``: see `format_of`.
        input_size: shape of one input; ``None``: what the model's ``pretrained_cfg`` says.
        int8: quantize the ONNX file; see `int8.py` for how.
        data: batches of images for ``int8``, to calibrate convolutions and to measure agreement. ``None``: agreement on
            noise, for models with few convolutions.
        overwrite: replace ``file`` if it exists.
        seed: of the noise that the file is compared on.

    Raises:
        ExportError: a package or a translation is missing, the file differs or is too large, or its name says another
            format.
        ArtefactError: ``file`` is in the way or cannot be written. ModelError: no input size, or not one input and one
        output. NonFiniteError: the model's own outputs hold NaN, or with ``int8`` infinity. DataError: ``data`` has too
        few images, or others than the model takes.

    Example:
        >>> export(student, "student.onnx").max_difference < 1e-4  # doctest: +SKIP
        True
    """
    start, file = time.perf_counter(), expanded(file)
    format = check_request(file, format, int8=int8, has_data=data is not None)  # noqa: A001
    model = network_of(as_written(model))  # the tensors get the names that the folder has
    student_bytes, size = bytes_of(model), _input_size(model, input_size)
    if format == "onnx":
        onnx_file.require_writable(model, student_bytes)
    with whole_file(file, overwrite) as staged, torch.no_grad(), evaluating(model):
        inputs = [_noise(model, count, size, seed + count) for count in BATCH_SIZES]
        expected = [_output(model, batch) for batch in inputs]
        require_numbers(expected, finite=int8)
        graph = program.trace(model, _noise(model, 2, size, seed))
        difference = largest_difference(_written(graph, format, staged), inputs, expected)
        require_close(difference, tolerance_of(model, format))
        require_small(staged.stat().st_size, student_bytes)
        eight = None
        if int8:
            float_file = staged.rename(staged.with_name(f"float-{staged.name}"))
            eight = quantize(model, float_file, staged, data, _noise(model, NOISE, size, seed))
            require_finite(onnx_file.OnnxModel(staged), inputs)
        count = staged.stat().st_size
    seconds = time.perf_counter() - start
    return Exported(format, str(file), count, student_bytes, difference, BATCH_SIZES, seconds, eight)


def _written(graph: ExportedProgram, format: str, file: Path) -> nn.Module:  # noqa: A002
    """Write the file and read it back, ready to run."""
    if format == "onnx":
        onnx_file.write(graph, file)
        return onnx_file.OnnxModel(file)
    program.write(graph, file)
    return program.read(file)


def format_of(file: Path, given: str | None) -> str:
    """The format ``given``, else the one that the file's name ends as, else ``onnx``.

    Raises:
        ExportError: an unknown one, or a name that ends as files of another.
    """
    if given is not None and given not in FORMATS:
        raise ExportError(f"received the format {given!r}; expected {' or '.join(FORMATS)}; choose one")
    ending = file.suffix.lower()
    said = ENDINGS.get(ending)
    if given is None and ending in OTHERS:
        raise ExportError(
            f"received the file {file}, whose ending is of a format that is not written here; expected "
            f"{' or '.join(f'{end} ({form})' for end, form in ENDINGS.items())}; rename it, or say the format"
        )
    if said and given and said != given:
        raise ExportError(
            f"received the format {given} for the file {file}; expected {said}, as its ending says; leave the format "
            "out, or rename the file"
        )
    return given or said or FORMATS[0]


def check_request(file: Path, format: str | None, *, int8: bool, has_data: bool) -> str:  # noqa: A002
    """The format to write, and what can be known to be wrong before the model is touched.

    Raises:
        ExportError: see `format_of`; options that do not go together, or a package that is missing.
    """
    chosen = format_of(file, format)
    if int8 and chosen != "onnx":
        raise ExportError(
            f"received int8 with the format {chosen}; expected onnx, whose files it is for; drop int8 or write .onnx"
        )
    if has_data and not int8:
        raise ExportError("received images without int8; expected them only to quantize with; drop them or add int8")
    if chosen == "onnx":
        onnx_file.require_packages()
    return chosen


def largest_difference(running: nn.Module, inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest |got - expected| over every batch and output, over max(1, largest finite |expected|); NaN if any is NaN.

    Equal infinities do not differ: some models mask outputs with them.

    Raises:
        ExportError: the file does not run, or the outputs have another shape.
    """
    differences, scales = [], [torch.ones((), dtype=torch.double)]
    for batch, wanted in zip(inputs, expected, strict=True):
        with program.understood("a file that does not run", f"one that takes {len(batch)} inputs in a batch"):
            got = running(batch).detach()
        if got.shape != wanted.shape:
            raise ExportError(
                f"received outputs of {list(got.shape)} from the file for inputs of {list(batch.shape)}; expected "
                f"{list(wanted.shape)} as from the model; report it with the name of the model"
            )
        ours, theirs = got.cpu().double(), wanted.detach().cpu().double()
        differences.append((ours - theirs).abs().masked_fill(ours == theirs, 0).max())
        scales.append(theirs.abs().masked_fill(theirs.isinf(), 0).max())
    return float(torch.stack(differences).max() / torch.stack(scales).max())


def require_numbers(outputs: Iterable[Tensor], *, finite: bool) -> None:
    """Raises NonFiniteError if the model's own outputs hold NaN or, if they are to be ``finite``, infinity."""
    for output in outputs:
        if bool(output.isnan().any()) or (finite and not bool(output.isfinite().all())):
            raise NonFiniteError(
                f"received {'NaN or infinity' if finite else 'NaN'} in the model's own outputs for normal noise; "
                "expected numbers to compare the file with; check its weights and what it computes"
            )


def tolerance_of(model: nn.Module, format: str) -> float:  # noqa: A002
    """By how much a file's outputs may differ from the model's."""
    half = any(tensor.dtype == torch.float16 for tensor in weights_of(model))
    return HALF_TOLERANCE if half and format == "onnx" else TOLERANCE


def require_close(difference: float, tolerance: float = TOLERANCE) -> None:
    """Raises ExportError if the file's outputs are not the model's."""
    if not difference <= tolerance:  # NaN is not
        raise ExportError(
            f"received a file whose outputs differ from the model's by {difference:.1e} of the largest; expected at "
            f"most {tolerance:g}, no more than its precision rounds by; pass model.float(), try another format, or "
            "report it with the name of the model"
        )


def require_small(count: int, student_bytes: int) -> None:
    """Raises ExportError if the file stores much more than the weights: factors multiplied out, or tensors twice."""
    most = int(student_bytes * (1 + GRAPH_SHARE)) + GRAPH_BYTES
    if count > most:
        raise ExportError(
            f"received a file of {count:,} bytes for a model of {student_bytes:,}; expected at most {most:,}; try "
            "another format, or report it with the name of the model"
        )


def require_finite(running: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Raises ExportError if the int8 file's outputs hold anything but numbers."""
    if not all(bool(_output(running, batch).isfinite().all()) for batch in inputs):
        raise ExportError(
            "received an int8 file with NaN or infinity in its outputs; expected numbers; calibrate with more images, "
            "or export in float"
        )


def _input_size(model: nn.Module, given: Any) -> tuple[int, ...]:
    size = own_input_size(model) if given is None else given
    if size is None:
        raise ModelError("received a model without an input size; expected to know it; pass input_size=(c, h, w)")
    if not isinstance(size, Sequence) or not size or not all(isinstance(n, Integral) and int(n) > 0 for n in size):
        raise ModelError(
            f"received the input size {size!r}; expected positive whole numbers, the shape of one input; pass "
            "input_size=(c, h, w), or (n,) for vectors"
        )
    return tuple(map(int, size))


def _output(model: nn.Module, batch: Tensor) -> Tensor:
    def told(error: Exception) -> ModelError:
        return ModelError(
            f"received inputs of the size {tuple(batch.shape[1:])}, which the model does not take "
            f"({one_line(error)}); expected one that it takes; pass "
            "input_size, or wrap a model of several inputs in a module of one"
        )

    with refused(told):
        output = model(batch)
    if not isinstance(output, Tensor):
        raise ModelError(
            f"received a model that returns {type(output).__name__}; expected one tensor; wrap it in a module that "
            "returns the one you need"
        )
    return output


def _noise(model: nn.Module, count: int, size: Sequence[int], seed: int) -> Float[Tensor, "b ..."]:
    """Normal inputs [count, *size], where the model is and of its precision."""
    return placed(torch.randn(count, *size, generator=torch.Generator().manual_seed(seed)), model)
