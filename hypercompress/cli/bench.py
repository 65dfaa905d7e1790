"""``hypercompress bench``: how fast a student is beside its teacher on this machine."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Column, Table
from torch import Tensor, nn

from hypercompress.benchmark import LayerSpeed, ModelSpeed, Settings, compare_layers, compare_models, dense_twin
from hypercompress.cli import checks, inputs
from hypercompress.cli.terminal import Terminal
from hypercompress.errors import BenchmarkError, ModelError
from hypercompress.models import is_student_folder, require_buildable
from hypercompress.running.calling import precision
from hypercompress.running.timing import Timing
from hypercompress.student import Student, from_pretrained

BATCH_SIZES = (1, 32)  # an answer at once, and as many answers as possible


def bench(arguments: Namespace) -> None:
    """Run the command.

    Raises:
        HypercompressError: whatever is wrong with the input.
    """
    sizes = arguments.batch_size or BATCH_SIZES
    checks.require(
        lambda: _student(arguments.student),
        lambda: _teacher(arguments),
        lambda: checks.model_args(arguments.model_args),
        lambda: checks.preprocessing(arguments.input_size, None, None),
        lambda: checks.device(arguments.device),
        *(lambda size=size: checks.at_least("--batch-size", size, 1) for size in sizes),
        lambda: Settings(seconds=arguments.seconds),
        lambda: Settings(threads=arguments.threads),
        lambda: checks.at_least("--seed", arguments.seed, 0),
    )
    with Terminal(arguments.json) as terminal:
        terminal.finish(_run(arguments, sizes, terminal))


def _run(arguments: Namespace, sizes: Sequence[int], terminal: Terminal) -> dict[str, Any]:
    device, settings = checks.device(arguments.device), _settings(arguments)
    terminal.phase("load models")
    student = from_pretrained(arguments.student).eval()
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else precision(student)
    size = tuple(arguments.input_size or inputs.input_size(student.model))
    teacher, what = _dense_side(arguments, student, size, terminal)
    terminal.note("against", what)
    for model in (teacher, student):
        inputs.output_shape(model.to(device, dtype), size)
    terminal.note("input", f"noise, {' x '.join(map(str, size))}")
    terminal.note("device", f"{device}{'' if arguments.device else ' (chosen)'}")
    terminal.note("precision", str(dtype).removeprefix("torch."))
    terminal.note("threads", str(settings.threads or f"{torch.get_num_threads()} (as torch chose)"))
    rows: list[ModelSpeed] = []
    layers: list[LayerSpeed] = []
    for count in sizes:
        terminal.phase(f"batches of {count}")
        batch = _noise(count, size, student, arguments.seed)
        rows.append(compare_models(teacher, student, batch, settings))
        if arguments.layers:
            terminal.phase(f"layers, batches of {count}")
            layers += compare_layers(student, batch, settings)
    terminal.show(model_table(rows))
    result: dict[str, Any] = {"against": what, "rows": [row.as_json() for row in rows]}
    if arguments.layers:
        terminal.show(layer_table(layers))
        result["layers"] = [layer.as_json() for layer in layers]
    terminal.show("efficiency: speedup / MACs ratio (1: all the multiply-accumulates saved are time saved)")
    return result


def model_table(rows: list[ModelSpeed]) -> Table:
    """One line for each batch size; times as the median with the quartiles."""
    table = Table("batch", "dense ms", "student ms", "speedup", "MACs ratio", "efficiency")
    for row in rows:
        speed = row.speed
        times = (_spread(speed.dense), _spread(speed.student))
        numbers = (speed.speedup, speed.macs_ratio, speed.efficiency)
        table.add_row(str(row.batch_size), *times, *(f"{number:.2f}" for number in numbers))
    return table


def layer_table(layers: list[LayerSpeed]) -> Table:
    """One line for each factored layer and batch size."""
    table = Table(Column("layer", overflow="fold"), "batch", "input", "rank")
    for name in ("dense ms", "low-rank ms", "speedup", "MACs ratio", "efficiency", ""):
        table.add_column(name)
    for layer in layers:
        speed = layer.speed
        times = (f"{speed.dense.ms:.3f}", f"{speed.student.ms:.3f}")
        numbers = (f"{number:.2f}" for number in (speed.speedup, speed.macs_ratio, speed.efficiency))
        shape = " x ".join(map(str, layer.input_size[1:]))
        about = (layer.name, str(layer.batch_size), shape, str(layer.rank))
        table.add_row(*about, *times, *numbers, "slower" if layer.slower else "")
    return table


def _spread(timing: Timing) -> str:
    low, high = timing.quartiles
    return f"{timing.ms:.2f} ({low:.2f} to {high:.2f})"


def _student(text: str) -> None:
    if not is_student_folder(text):
        raise ModelError(
            f"received STUDENT {text}, which is no student folder (no config.json); expected one; "
            f"{checks.meant(text)}make it with hypercompress generate"
        )
    require_buildable(Path(text))


def _teacher(arguments: Namespace) -> None:
    """``--against`` is another model, and ``--model-args`` have a timm name that they belong to."""
    text = arguments.against
    if arguments.model_args is not None and (text is None or is_student_folder(text)):
        raise ModelError(
            "received --model-args without a timm name in --against; expected one that they belong to; drop them or "
            "name it"
        )
    if text is None:
        return
    checks.model(text)
    if Path(text).resolve() == Path(arguments.student).resolve():
        raise BenchmarkError(
            f"received --against {text}, which is STUDENT; expected its teacher; leave --against out to compare with "
            "the student multiplied out"
        )


def _settings(arguments: Namespace) -> Settings:
    return Settings(arguments.seconds, arguments.threads, arguments.channels_last)


def _dense_side(
    arguments: Namespace, student: Student, size: tuple[int, ...], terminal: Terminal
) -> tuple[nn.Module, str]:
    """What the student is compared with, and what that is in words."""
    text = arguments.against
    if text is None:
        plain = inputs.of_another_class(student)
        less = ", but for the standardisation of weights, which the teacher repeats in each pass" if plain else ""
        return dense_twin(student), f"STUDENT multiplied out (the layers of its teacher, hence the time{less})"
    # Time does not depend on the weights: none are fetched.
    source = inputs.Source(text, None, checks.model_args(arguments.model_args), pretrained=False)
    source = inputs.like(source, student.architecture, terminal)
    return inputs.load(source, size)[0], str(source)


def _noise(count: int, size: tuple[int, ...], model: nn.Module, seed: int) -> Tensor:
    first = next(model.parameters())
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(seed)).to(first.device, first.dtype)
