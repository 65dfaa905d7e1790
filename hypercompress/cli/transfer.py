"""``hypercompress transfer``: a trained model and a few labelled images of a new task in, a student for it out."""

from argparse import Namespace
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from rich.table import Table
from torch import nn

from hypercompress.architecture import Architecture
from hypercompress.architecture.record import with_preparation
from hypercompress.cli import checks, inputs
from hypercompress.cli.shown import show_task
from hypercompress.cli.terminal import Terminal
from hypercompress.data import ImageData, Preprocess, loader, open_data
from hypercompress.errors import DataError
from hypercompress.inspection import require_finite
from hypercompress.models import is_student_folder
from hypercompress.report import bytes_of
from hypercompress.running.calling import precision, single_
from hypercompress.running.memory import keep_freed
from hypercompress.saved.artefact import refuse_existing
from hypercompress.saved.card import steps_line
from hypercompress.saved.replacing import prepared_in
from hypercompress.student import Student, from_pretrained, network_of
from hypercompress.transfer import adapt, load_network
from hypercompress.transfer.levels import Weighing
from hypercompress.transfer.ridge import check_labels
from hypercompress.transfer.support import draw_shots
from hypercompress.transfer.tuning import Tuned


def transfer(arguments: Namespace) -> None:
    """Run the command.

    Raises:
        HypercompressError: whatever is wrong with the input; nothing is written then.
    """
    checks.require(
        lambda: checks.model(arguments.model),
        lambda: refuse_existing(arguments.out, arguments.overwrite),
        lambda: checks.writable(prepared_in(arguments.out)),
        lambda: load_network(arguments.network),
        lambda: checks.splits(arguments.data),
        lambda: checks.at_least("--shots", arguments.shots, 1),
        lambda: checks.at_least("--steps", arguments.steps, 0),
        lambda: checks.at_least("--views", arguments.views, 0),
        lambda: checks.share("--follow", arguments.follow),
        lambda: checks.of_steps("--follow", arguments.follow, arguments.steps),
        lambda: checks.of_steps("--tune", arguments.tune, arguments.steps),
        *checks.common(arguments),
    )
    torch.manual_seed(arguments.seed)
    if arguments.steps:
        keep_freed()
    with Terminal(arguments.json) as terminal:
        terminal.finish(_run(arguments, terminal))


def _run(arguments: Namespace, terminal: Terminal) -> dict[str, Any]:
    device = checks.device(arguments.device)
    overrides = inputs.Overrides(arguments.input_size, arguments.mean, arguments.std)
    terminal.phase("load model")
    model, architecture = _model(arguments, overrides)
    preprocess = Preprocess.of(model, overrides.input_size, overrides.mean, overrides.std)
    inner, architecture = with_preparation(network_of(model), architecture, preprocess)
    size = bytes_of(inner)
    own = single_(inner)
    inputs.show_preprocessing(terminal, preprocess, overrides, "MODEL")
    terminal.note("device", f"{device}{'' if arguments.device else ' (chosen)'}")

    terminal.phase("read images")
    images = open_data(arguments.data, preprocess, train=True)
    support = chosen_images(images, arguments)
    terminal.note("support", f"{len(support)} of {len(images)} images, {len(images.classes)} classes")
    terminal.phase("adapt")
    terminal.then("steps", "steps", arguments.steps)
    batches: Iterable[Any] = loader(
        support, batch_size=arguments.batch_size, shuffle=True, seed=arguments.seed, dtype=precision(inner)
    )
    student = adapt(
        Student(inner.to(device), architecture, getattr(model, "report", None)),
        list(batches) if arguments.shots else batches,  # a few images are prepared once, a data set in each pass
        steps=arguments.steps,
        views=arguments.views,
        levels=not arguments.no_levels,
        tuned=arguments.tune or Tuned.ALL,
        follow=arguments.follow,
        network=arguments.network,
        names=images.classes,
        seed=arguments.seed,
        progress=terminal.progress,
    )
    read = {"data": arguments.data, "data_digest": checks.folder_digest(arguments.data, train=True)}
    student.to(own).report["transfer"] |= {"shots": arguments.shots, **read}
    student.report["teacher"]["bytes"] = size  # in its own precision
    terminal.phase("save")
    student.save_pretrained(arguments.out, overwrite=arguments.overwrite)
    show_task(student.report["transfer"], terminal)
    terminal.show(table(student.report["transfer"]))
    terminal.note("saved", str(arguments.out))
    return dict(student.report)


def chosen_images(images: ImageData, arguments: Namespace) -> ImageData:
    """The support images: all, or ``--shots`` of each class.

    Raises:
        DataError: no labels, fewer than two classes, or a class with no image or with fewer than ``--shots``.
    """
    if not images.labelled:
        raise DataError(
            f"received the unlabelled images of {arguments.data}; expected labelled ones of the new task; sort "
            "them into class sub-folders"
        )
    labels = images.labels
    check_labels(labels, len(images.classes), images.classes)
    if arguments.shots is None:
        return images
    return images.only(draw_shots(labels, arguments.shots, arguments.seed, images.classes).tolist())


def _model(arguments: Namespace, overrides: inputs.Overrides) -> tuple[nn.Module, Architecture | None]:
    """MODEL; a student stays a student, with its report."""
    if is_student_folder(arguments.model):
        if arguments.checkpoint is not None or arguments.model_args:
            inputs.load(inputs.Source(arguments.model, arguments.checkpoint, checks.model_args(arguments.model_args)))
        student = from_pretrained(arguments.model)
        require_finite(student)
        return student, student.architecture
    source = inputs.Source(
        arguments.model, arguments.checkpoint, checks.model_args(arguments.model_args), not arguments.no_pretrained
    )
    return inputs.load(source, overrides.input_size)


def table(told: Mapping[str, Any]) -> Table:
    """What was done, and what leaving one out says."""
    views, levels = told["views"], told["levels"]
    shown = Table("", "ridge on MODEL", "adapted", "on all stages", f"and {views['count']} views")
    for name in ("accuracy", "loss"):
        cells = (_left_out(told, kind, name) for kind in ("plain", "adapted", "levels", "views"))
        shown.add_row(f"leave-one-out {name}", *cells)
    kept = ["yes" if told["kept"] == kind else "" for kind in ("plain", "adapted")]
    shown.add_row("kept", *kept, *("yes" if part["kept"] else "" for part in (levels, views)))
    shown.add_row("why", told["why"], "", levels["why"], views["why"])
    shown.add_row("network", told["network"])
    shown.add_row("steps", steps_line(told))
    for name in ("penalty", "passes", "seconds"):
        shown.add_row(name, f"{told[name]:.4g}")
    return shown


def _left_out(told: Mapping[str, Any], kind: str, name: str) -> str:
    """Accuracy or loss of one head where an image is left out."""
    value = told["loo"][kind][name]
    if value is None and told["loo"]["plain"]["loss"] is None:
        return "unknown"  # one image a class: nothing can be left out
    if value is None and kind == "levels" and (losses := _tried(told["levels"])):  # and not kept
        return f"{min(losses):.4f}" if name == "loss" else "unknown"
    return "not tried" if value is None else f"{value:.4f}"


def _tried(levels: Mapping[str, Any]) -> list[float]:
    """Leave-one-out losses of the heads on all stages."""
    return [loss for weighing, loss in levels["loo_loss"].items() if weighing != Weighing.LAST and loss is not None]
