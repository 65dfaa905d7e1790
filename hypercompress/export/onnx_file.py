"""An ONNX file: written by torch's exporter, checked by onnx, run by onnxruntime.

Shape letters: ``b`` inputs in a batch, any number when the file runs.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import ExportedProgram

from hypercompress.errors import ExportError
from hypercompress.export.program import quiet, understood

PACKAGES = ("onnx", "onnxruntime", "onnxscript")  # the extra `export`
INPUT, OUTPUT = "input", "output"
FOLDED = 1024  # elements that folding a constant may add; runtimes fold the larger tables when they load the file
LARGEST = 2**31 - 2**20  # bytes of weights: protobuf ends at 2 GiB, and the graph needs room too


def require_packages() -> None:
    """Raises ExportError if the extra `export` is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"received the format onnx without {' and '.join(missing)}; expected the packages that write and check it; "
            "pip install 'hypercompress[export]'"
        )


def require_writable(model: nn.Module, count: int) -> None:
    """Raises ExportError for weights, of ``count`` bytes in all, that no file can hold or onnxruntime cannot run."""
    if count > LARGEST:
        raise ExportError(
            f"received a model of {count:,} bytes; expected at most {LARGEST:,}, because one ONNX file ends at 2 GiB; "
            "use the format torch-export"
        )
    if any(tensor.dtype == torch.bfloat16 for tensor in (*model.parameters(), *model.buffers())):
        raise ExportError(
            "received a model in bfloat16; expected one in float32, because ONNX has no convolution in bfloat16 and "
            "onnxruntime takes no such inputs; pass model.float(), or use the format torch-export"
        )


def write(program: ExportedProgram, file: Path) -> None:
    """Translate a program and save it with its weights inside; ``input`` [b, ...] gives ``output`` [b, ...].

    The exporter's notes on where each operation comes from are left out: they can outweigh the weights of a small
    student.

    Raises:
        ExportError: an operation has no translation, or the result is no valid ONNX.
    """
    import onnx
    from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass
    from onnxscript.optimizer import optimize

    with understood("a model that has no translation to ONNX", "operations that ONNX has"), quiet():
        translated = torch.onnx.export(
            program,
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            optimize=False,
            verbose=False,
        )
        assert translated is not None  # it is None only for the old exporter
        optimize(translated.model, output_size_limit=FOLDED)
        ClearMetadataAndDocStringPass()(translated.model)
        translated.save(file, external_data=False)
        onnx.checker.check_model(file, full_check=True)


class OnnxModel(nn.Module):
    """An ONNX file as a module, run by onnxruntime on the CPU with as many threads as torch has.

    Shape: ``[b, ...]`` to ``[b, ...]``, the output on the input's device.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; its warnings are about its own optimisations
        options.intra_op_num_threads = torch.get_num_threads()
        with understood("an ONNX file that onnxruntime cannot load", "operations that it has"):
            self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        with understood("an ONNX file that onnxruntime cannot run", "operations that it has"):
            outputs = self.session.run([OUTPUT], {INPUT: x.detach().cpu().numpy()})
        return torch.from_numpy(outputs[0]).to(x.device)
