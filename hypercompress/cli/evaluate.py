"""``hypercompress evaluate``: accuracy of a student, and its fidelity to a teacher."""

import time
from argparse import Namespace
from collections.abc import Iterable
from typing import Any

import torch
from rich.table import Table
from torch import nn

from hypercompress.cli import checks, inputs
from hypercompress.cli.terminal import Terminal
from hypercompress.data import ImageData, Preprocess, loader, open_data, other_normalization, renormalize_
from hypercompress.errors import DataError, HypercompressError, ModelError
from hypercompress.fidelity import accuracy, compare
from hypercompress.models import described, is_student_folder
from hypercompress.report import reading
from hypercompress.running.calling import call_in_precision
from hypercompress.student import Student


def evaluate(arguments: Namespace) -> None:
    """Run the command.

    Raises:
        HypercompressError: whatever is wrong with the input.
    """
    checks.require(
        lambda: checks.model(arguments.student),
        lambda: checks.model(arguments.against or arguments.student),
        lambda: _whose(arguments),
        *checks.common(arguments),
    )
    torch.manual_seed(arguments.seed)
    with Terminal(arguments.json) as terminal:
        terminal.finish(_run(arguments, terminal))


def _run(arguments: Namespace, terminal: Terminal) -> dict[str, Any]:
    device = checks.device(arguments.device)
    overrides = inputs.Overrides(arguments.input_size, arguments.mean, arguments.std)
    student_source, teacher_source = _sources(arguments)
    terminal.phase("load models")
    terminal.note("model", str(student_source))
    student, architecture = inputs.load(student_source, overrides.input_size)
    preprocess = Preprocess.of(student, overrides.input_size, overrides.mean, overrides.std)
    inputs.show_preprocessing(terminal, preprocess, overrides, "STUDENT")
    teacher = None
    if teacher_source is not None:
        source = inputs.like(teacher_source, architecture, terminal)
        terminal.note("against", str(source))
        teacher, _ = inputs.load(source, preprocess.input_size)
        if overrides.mean is None and overrides.std is None:
            _renormalize(teacher, source, preprocess, terminal)
    terminal.note("device", f"{device}{'' if arguments.device else ' (chosen)'}")
    models = [model.to(device) for model in (student, teacher) if model is not None]
    shapes = [inputs.output_shape(model, preprocess.input_size) for model in models]
    if len(set(shapes)) > 1:
        raise ModelError(
            f"received outputs of {list(shapes[0])} from {arguments.student} and {list(shapes[1])} from "
            f"{arguments.against}; expected equal shapes; pass --model-args '{{\"num_classes\": {shapes[0][0]}}}'"
        )

    terminal.phase("read images")
    names = inputs.class_names(arguments.student) or inputs.class_names(arguments.against)
    read = open_data(arguments.data, preprocess, train=False)
    images = _named(read, arguments.data, shapes[0], names, terminal, compared=teacher is not None)
    if teacher is None and not images.labelled:
        raise DataError(
            f"received images of {arguments.data} without labels of the model's classes and no --against; expected "
            "something to compare with; sort the images into sub-folders of these classes or pass --against MODEL"
        )
    if seen := inputs.seen_before(arguments.student, arguments.data):
        terminal.note("images", seen)
    count = min(len(images), arguments.images or len(images))
    batches = loader(images, batch_size=arguments.batch_size, seed=arguments.seed, limit=count)
    start = time.perf_counter()
    moved = inputs.on_device(terminal.counted("evaluate", batches, count), device)
    judged = Student(student, report=inputs.report_of(arguments.student))  # which says how its outputs are read
    result = {**measured(judged, teacher, moved), "images": count, "seconds": time.perf_counter() - start}
    terminal.show(_table(result))
    return result


def _renormalize(teacher: nn.Module, source: inputs.Source, given: Preprocess, terminal: Terminal) -> None:
    """A teacher whose own normalisation is known and differs gets its own: STUDENT's is not it."""
    known = described(source.text, source.checkpoint, pretrained=source.pretrained)
    own = other_normalization(teacher, given) if known else None
    if own is None:
        return
    renormalize_(teacher, given, own)
    numbers = [" ".join(f"{value:g}" for value in values) for values in (own.mean, own.std)]
    terminal.note(
        "preprocessing of --against", f"mean {numbers[0]}, std {numbers[1]} (its own; else give --mean, --std)"
    )


def measured(student: nn.Module, teacher: nn.Module | None, batches: Iterable[Any]) -> dict[str, float | None]:
    """``top1``, ``top1_teacher``, ``agreement`` and ``kl``; ``None`` where there is nothing to measure it with."""
    if teacher is None:
        top1 = accuracy(student, batches, call_in_precision)
        return {"top1": top1, "top1_teacher": None, "agreement": None, "kl": None}
    found = compare(teacher, student, batches, reading(student, call_in_precision))
    return {
        "top1": found.top1_student,
        "top1_teacher": found.top1_teacher,
        "agreement": found.agreement,
        "kl": found.kl,
    }


def _whose(arguments: Namespace) -> None:
    """The options that go with a timm name have exactly one model that they can belong to."""
    given = [
        option
        for option, value in {
            "--checkpoint": arguments.checkpoint,
            "--model-args": arguments.model_args,
        }.items()
        if value is not None
    ]
    named = [text for text in (arguments.student, arguments.against) if text and not is_student_folder(text)]
    if given and len(named) != 1:
        raise HypercompressError(
            f"received {' and '.join(given)} with {len(named)} timm models; expected one timm model that they belong "
            f"to; {'drop them' if not named else 'name a student folder as STUDENT'}"
        )


def _sources(arguments: Namespace) -> tuple[inputs.Source, inputs.Source | None]:
    """STUDENT and --against; the options belong to the one that is a timm name."""
    pretrained = not arguments.no_pretrained
    values = checks.model_args(arguments.model_args)

    def source(text: str) -> inputs.Source:
        if is_student_folder(text):
            return inputs.Source(text)
        return inputs.Source(text, arguments.checkpoint, values, pretrained)

    return source(arguments.student), None if arguments.against is None else source(arguments.against)


def _named(
    images: ImageData, data: str, outputs: tuple[int, ...], names: list[str], terminal: Terminal, *, compared: bool
) -> ImageData:
    """The images, labelled where top-1 means something; more classes than the model can name are a mistake where there
    is nothing else to measure.
    """
    classes = len(images.classes)
    if images.labelled and outputs and classes > outputs[0] and not compared:
        raise DataError(
            f"received images of {classes} classes for a model of {outputs[0]} outputs; expected a class for each "
            "label; use the data set the model was trained for"
        )
    return inputs.comparable(images, data, outputs[0], names, terminal) if outputs else images


def _table(result: dict[str, Any]) -> Table:
    table = Table("measure", "value")
    for name, value in result.items():
        digits = ".4g" if name == "kl" else ".4f"  # of a near student all that matters is below the fourth place
        shown = "not measured" if value is None else f"{value:{digits}}" if isinstance(value, float) else f"{value:,}"
        table.add_row(name, shown)
    return table
