"""``hypercompress export``: a student as one file that runs elsewhere, run and compared before it is kept."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from hypercompress.cli import checks, inputs
from hypercompress.cli.terminal import Terminal
from hypercompress.data import Preprocess, open_data
from hypercompress.errors import ExportError
from hypercompress.export import Exported, check_request, format_of
from hypercompress.export import export as export_model
from hypercompress.saved.whole_file import refuse_existing_file

DEVICE = "cpu"


def export(arguments: Namespace) -> None:
    """Run the command.

    Raises:
        HypercompressError: whatever is wrong with the input; nothing is written then.
    """
    checks.require(
        lambda: checks.model(arguments.student),
        lambda: _request(arguments),
        lambda: _preprocessing(arguments),
        lambda: _device(arguments),
        lambda: refuse_existing_file(arguments.file, arguments.overwrite),
        lambda: checks.apart(arguments.file, Path(arguments.student)),
        lambda: checks.writable(arguments.file.parent),
        *checks.common(arguments, batch_size=2),
    )
    torch.manual_seed(arguments.seed)
    with Terminal(arguments.json) as terminal:
        terminal.finish(_run(arguments, terminal))


def _run(arguments: Namespace, terminal: Terminal) -> dict[str, Any]:
    source = inputs.Source(
        arguments.student, arguments.checkpoint, checks.model_args(arguments.model_args), not arguments.no_pretrained
    )
    terminal.phase("load model")
    terminal.note("model", str(source))
    model, _ = inputs.load(source, arguments.input_size)
    size = tuple(arguments.input_size or inputs.input_size(model))
    model.to(checks.device(arguments.device or DEVICE))
    inputs.output_shape(model, size)  # a model that refuses the size is told so

    batches = None
    if arguments.data is not None:
        terminal.phase("read images")
        overrides = inputs.Overrides(arguments.input_size, arguments.mean, arguments.std)
        preprocess = Preprocess.of(model, overrides.input_size, overrides.mean, overrides.std)
        inputs.show_preprocessing(terminal, preprocess, overrides, "STUDENT")
        images = open_data(arguments.data, preprocess, train=True)
        options = {"limit": arguments.images, "batch_size": arguments.batch_size, "seed": arguments.seed}
        loaded, count, _ = inputs.calibration(images, model, **options)
        batches = terminal.counted("prepare images", loaded, count)
    else:
        terminal.phase("export, run and compare")
    exported = export_model(
        model,
        arguments.file,
        arguments.format,
        input_size=size,
        int8=arguments.int8,
        data=batches,
        overwrite=arguments.overwrite,
        seed=arguments.seed,
    )
    _show(exported, terminal)
    return exported.as_json()


def _request(arguments: Namespace) -> None:
    check_request(arguments.file, arguments.format, int8=arguments.int8, has_data=arguments.data is not None)


def _preprocessing(arguments: Namespace) -> None:
    """``--mean`` and ``--std`` are of images."""
    if arguments.data is None and (arguments.mean is not None or arguments.std is not None):
        raise ExportError(
            "received --mean or --std without --data; expected images that they prepare; drop them or pass --data"
        )


def _device(arguments: Namespace) -> None:
    """Only a program of torch can belong to another device than the CPU."""
    if (
        format_of(arguments.file, arguments.format) == "onnx"
        and checks.device(arguments.device or DEVICE).type != "cpu"
    ):
        raise ExportError(
            f"received --device {arguments.device} for an ONNX file; expected cpu, where it is made and run for the "
            "comparison; drop --device: the file itself belongs to no device"
        )


def _show(exported: Exported, terminal: Terminal) -> None:
    """What was written, how close it is, and for eight bits what they cost."""
    terminal.note("format", exported.format)
    terminal.note("bytes", f"{exported.bytes:,} (weights of the student: {exported.student_bytes:,})")
    sizes = " and ".join(map(str, exported.batch_sizes))
    what = "max difference" if exported.int8 is None else "max difference before int8"
    terminal.note(what, f"{exported.max_difference:.1e} of max(1, largest output), at batches of {sizes}")
    if exported.int8 is not None:
        int8 = exported.int8
        what = "inputs of noise" if int8.measured_on == "noise" else "images"
        terminal.note("int8", f"{int8.method}, {exported.bytes / int8.float_bytes:.0%} of {int8.float_bytes:,} bytes")
        agreement = "" if int8.agreement is None else f"agreement {int8.agreement:.4f}, "
        terminal.note("measured", f"{agreement}KL {int8.kl:.4g} nats on {int8.images} {what}")
    terminal.note("saved", exported.file)
