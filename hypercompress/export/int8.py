"""An ONNX file in eight bits, by onnxruntime's quantizer, and how far its answers are from the student's.

Weights have one scale for each output channel. Activations are either scaled by ranges seen on calibration images
(*static*: convolutions, matrix products and what lies between), or in each run by what comes in (*dynamic*: matrix
products only).
`choose` says which; LOG.md has the measurements behind it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.errors import DataError, ExportError
from hypercompress.export.onnx_file import INPUT, OnnxModel
from hypercompress.export.program import quiet, understood
from hypercompress.fidelity import compare
from hypercompress.report import reading
from hypercompress.running.batches import to_device
from hypercompress.running.calibration import require_batches, split_batches
from hypercompress.running.calling import taking

NOISE = 64  # inputs to measure agreement with where there are no images
LARGEST_SHARE = 0.95  # of the float file's bytes, that a file in eight bits may have
PRODUCTS = ("MatMul", "Gemm")
CONVOLUTIONS = ("Conv", "ConvTranspose")
BETWEEN = (  # quantized where the file is static; onnxruntime's quantizer breaks others, such as norms over groups
    *("Add", "Mul", "Clip", "Relu", "LeakyRelu", "Sigmoid"),
    *("AveragePool", "GlobalAveragePool", "MaxPool", "Concat", "Resize"),
)


@dataclass(frozen=True)
class Int8:
    """What eight bits did.

    Args:
        method: ``static`` or ``dynamic``.
        float_bytes: size of the file before.
        agreement: share of inputs on which it names the same class as the float student.
        kl: mean of KL(float student || int8) in nats.
        images: number of inputs measured.
        measured_on: ``data`` (none of the images that calibrated) or ``noise``.
    """

    method: str
    float_bytes: int
    agreement: float | None
    kl: float
    images: int
    measured_on: str


def quantize(
    model: nn.Module, float_file: Path, file: Path, data: Iterable[Any] | None, noise: Float[Tensor, "b ..."]
) -> Int8:
    """Write ``file`` in eight bits and measure it.

    Args:
        model: the float student, to compare with.
        float_file: its ONNX file.
        data: batches of images, a tensor or a tuple that begins with one, cast to the model's type. Where
            ranges are needed three of four calibrate and the rest measure; else all measure.
        noise: inputs [b, ...] that stand in where there are no images.

    Raises:
        DataError: too few images, or batches of another kind. ExportError: there are no images for convolutions, eight
        bits would save nothing, or the quantizer refuses the file.
    """
    method = choose(float_file, has_data=data is not None)
    batches = noise.split(32) if data is None else _batches(data, noise)
    if method == "static":
        split = split_batches(batches, noise.device)
        write_static(float_file, file, split.statistics)
        batches = [*split.select, *split.confirm]
    else:
        write_dynamic(float_file, file)
    float_bytes = float_file.stat().st_size
    require_smaller(file.stat().st_size, float_bytes)
    fidelity = compare(model, OnnxModel(file), batches, reading(model, taking(None)))
    return Int8(
        method,
        float_bytes,
        fidelity.agreement,
        fidelity.kl,
        fidelity.images,
        "noise" if data is None else "data",
    )


def require_smaller(count: int, float_bytes: int) -> None:
    """Raises ExportError if the file is hardly smaller than in float: no operation above has the weights, or so few
    that the scales and operations that eight bits add take as much.
    """
    if count > LARGEST_SHARE * float_bytes:
        raise ExportError(
            f"received a model that eight bits would save nothing of ({count:,} bytes, {float_bytes:,} in float); "
            f"expected weights in {', '.join((*CONVOLUTIONS, *PRODUCTS))}, and more of them than the scales and "
            "operations that eight bits add; export in float"
        )


def choose(file: Path, *, has_data: bool) -> str:
    """``static`` where most weights belong to convolutions, else ``dynamic``.

    Measured on the CPU: static convolutions run up to three times as fast as in float, dynamic ones three to seventeen
    times slower; of a transformer the dynamic file is faster, smaller and ten times closer to the student than the
    static one. Ranges calibrated on noise cost up to twelve points of agreement: no images, no static file.

    Raises:
        ExportError: mostly convolutions, and no images.
    """
    share = convolution_share(file)
    if share < 0.5:
        return "dynamic"
    if not has_data:
        raise ExportError(
            f"received int8 without images for a model with {share:.0%} of its weights in convolutions; expected "
            "images to calibrate these with; pass data (--data DATA)"
        )
    return "static"


def convolution_share(file: Path) -> float:
    """Convolution weights as a share of all weights that multiply, in [0, 1]."""
    import onnx

    graph = onnx.load(file).graph
    sizes = {tensor.name: len(tensor.raw_data) for tensor in graph.initializer}
    bytes_of = dict.fromkeys((*CONVOLUTIONS, *PRODUCTS), 0)
    for node in graph.node:
        if node.op_type in bytes_of:
            bytes_of[node.op_type] += sum(sizes.get(name, 0) for name in node.input)
    return sum(bytes_of[name] for name in CONVOLUTIONS) / max(1, sum(bytes_of.values()))


def _batches(data: Iterable[Any], like: Tensor) -> list[Tensor]:
    """The images of all batches, where ``like`` is and of its type: files have inputs of one type.

    Raises:
        DataError: see `require_batches`; or images of another shape than ``like``, or of whole numbers.
    """
    require_batches(data)
    batches = []
    for batch in data:
        images = _images(batch)
        if not images.is_floating_point() or images.ndim != like.ndim or images.shape[1:] != like.shape[1:]:
            raise DataError(
                f"received a calibration batch of {images.dtype} {list(images.shape)}; expected real numbers of "
                f"{['b', *like.shape[1:]]} as the file takes them; resize and normalise the images as for training"
            )
        images = to_device(images.detach(), like.device, like.dtype)
        batches.append(images if isinstance(data, (list, tuple)) else images.clone())  # others may refill one buffer
    return [batch for batch in batches if len(batch)]


def _images(batch: Any) -> Tensor:
    """The images of a batch, whatever comes after them."""
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(images, Tensor):
        raise DataError(
            f"received a calibration batch of {type(images).__name__}; expected a tensor of images, or a tuple that "
            "begins with one; change the loader"
        )
    return images


def write_dynamic(source: Path, file: Path) -> None:
    """Quantize the matrix products of a file; activations get their scale in each run.

    Raises:
        ExportError: onnxruntime's quantizer refuses the file.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with understood("a file that onnxruntime's quantizer refuses", "operations that it knows"), quiet():
        quantize_dynamic(
            source, file, op_types_to_quantize=list(PRODUCTS), per_channel=True, weight_type=QuantType.QInt8
        )


def write_static(source: Path, file: Path, batches: Iterable[Tensor]) -> None:
    """Quantize convolutions, products and what lies between; activations get the ranges seen on ``batches`` [b, ...].

    Raises:
        ExportError: onnxruntime's quantizer refuses the file.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped
        """The batches, as onnxruntime asks for them."""

        def __init__(self) -> None:
            self.rest: Iterator[Tensor] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.rest, None)
            return None if batch is None else {INPUT: batch.cpu().numpy()}

    with understood("a file that onnxruntime's quantizer refuses", "operations that it knows"), quiet():
        quantize_static(
            source,
            file,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*CONVOLUTIONS, *PRODUCTS, *BETWEEN],
            per_channel=True,
            activation_type=QuantType.QUInt8,  # signed ones take up to four times as long on x86
            weight_type=QuantType.QInt8,
        )
