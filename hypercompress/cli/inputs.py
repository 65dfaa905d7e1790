"""From the words of a command to a model and batches on its device."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hypercompress import report
from hypercompress.architecture import Architecture
from hypercompress.architecture.weights import average_in
from hypercompress.cli.checks import LEAST_IMAGES, folder_digest, image_folder
from hypercompress.cli.terminal import Terminal
from hypercompress.data import ImageData, Preprocess, loader, mismatch, unlike_timm
from hypercompress.errors import DataError, ModelError, one_line
from hypercompress.inspection import inspect, require_finite
from hypercompress.kinds import low_rank_layers
from hypercompress.models import is_student_folder, load_model
from hypercompress.running.batches import to_device
from hypercompress.running.calling import evaluating, placed, precision, refused
from hypercompress.running.outputs import tensor_of
from hypercompress.saved.artefact import read_report
from hypercompress.specs import ModelSpec
from hypercompress.student import Student, from_pretrained

LEAST_BATCHES = 16  # the calibration images are cut finer where there are few, so that held-out batches exist


@dataclass(frozen=True)
class Overrides:
    """``--input-size``, ``--mean`` and ``--std``; ``None`` where not given."""

    input_size: Sequence[int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    @property
    def given(self) -> str:
        """The options given, for a note."""
        return ", ".join(f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value is not None)


@dataclass(frozen=True)
class Source:
    """Where a model comes from: the text, and what goes with a timm name."""

    text: str
    checkpoint: Path | None = None
    model_args: Mapping[str, Any] | None = None
    pretrained: bool = True

    def __str__(self) -> str:
        if is_student_folder(self.text):
            return f"student folder {self.text}"
        if self.checkpoint is None:
            return f"{self.text} with {'pretrained' if self.pretrained else 'random'} weights"
        average = average_in(self.checkpoint)
        return f"{self.text} with weights of {self.checkpoint}{f' (their average: {average})' if average else ''}"


def load(source: Source, input_size: Sequence[int] | None = None) -> tuple[nn.Module, Architecture | None]:
    """The model in evaluation mode, with finite weights, built for ``input_size`` [c, h, w] if that is given."""
    model, architecture = load_model(
        source.text,
        checkpoint=source.checkpoint,
        model_args=source.model_args,
        pretrained=source.pretrained,
        pretrained_cfg=None if input_size is None else {"input_size": list(input_size)},
    )
    require_finite(model)
    return model, architecture


def like(source: Source, architecture: Architecture | None, terminal: Terminal) -> Source:
    """A teacher of the student's own architecture takes the student's arguments unless others are given."""
    if source.model_args or architecture is None or is_student_folder(source.text):
        return source
    if source.text.partition(".")[0] != architecture.name.partition(".")[0] or not architecture.args:
        return source
    terminal.note("arguments of --against", f"{dict(architecture.args)} (those of STUDENT)")
    return replace(source, model_args=architecture.args)


def load_dense(
    source: Source, input_size: Sequence[int] | None, terminal: Terminal
) -> tuple[nn.Module, Architecture | None, int | None]:
    """As `load`; a student is multiplied out, because only a dense model can be factored and saved by its name.

    Returns:
        also the parameters of the student; ``None`` of a model that is none.

    Raises:
        ModelError: a student of a network that has no such dense form.
    """
    if not is_student_folder(source.text):
        return *load(source, input_size), None
    if source.checkpoint is not None or source.model_args:
        load(source)  # which refuses them
    student = from_pretrained(source.text)
    if other := of_another_class(student):
        raise ModelError(
            f"received a student whose layer {other[0]} was a weight-standardised convolution; expected layers that "
            "can be multiplied out to what they were; compress the original model instead"
        )
    dense, size = student.to_dense(), report.params_of(student)
    terminal.note(
        "MODEL",
        f"a student of {size:,} parameters: shares are of its dense form, {report.params_of(dense):,} parameters",
    )
    return dense, student.architecture, size


def of_another_class(student: Student) -> list[str]:
    """Dotted paths of the factored layers that would be of another class, multiplied out, than they were."""
    return [name for name, layer in low_rank_layers(student.model).items() if not layer.restores_class]


def inspected(model: nn.Module, size: Sequence[int]) -> ModelSpec:
    """The model as data, from one pass of an empty image; a model that refuses the size is told so.

    Raises:
        ModelError: the model cannot run on such an input.
    """
    with understood(size):
        return inspect(model, _blank(model, size), _run)


def output_shape(model: nn.Module, size: Sequence[int]) -> tuple[int, ...]:
    """Shape of the output for one image."""
    with understood(size), evaluating(model), torch.inference_mode():
        output = _run(model, _blank(model, size))
    return tuple(output.shape[1:])


def understood(size: Sequence[int]) -> AbstractContextManager[None]:
    """What a model raises on an input of ``size`` becomes a `ModelError`."""

    def told(error: Exception) -> ModelError:
        return ModelError(
            f"received images of {' x '.join(map(str, size))} that the model does not take "
            f"({one_line(error)}); expected a size it was built for; change --input-size or --model-args"
        )

    return refused(told)


def input_size(model: nn.Module) -> tuple[int, ...]:
    """What the model itself says about its input [c, h, w]."""
    cfg: Mapping[str, Any] = vars(model).get("pretrained_cfg") or {}
    if "input_size" not in cfg:
        raise ModelError("received a model without an input size; expected to know it; pass --input-size C H W")
    return tuple(cfg["input_size"])


def _run(model: nn.Module, images: Tensor) -> Tensor:
    """What a model gives; advice is that of a command, which has no ``forward_fn``."""
    return tensor_of(
        model(images), "choose another model, leave features_only out of --model-args, or use compress in Python"
    )


def _blank(model: nn.Module, size: Sequence[int]) -> Tensor:
    return placed(torch.zeros(2, *size), model)


def on_device(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """The batches, moved one at a time."""
    return (to_device(batch, device) for batch in batches)


def report_of(text: str | None) -> dict[str, Any]:
    """What a student folder says of itself; empty of another model."""
    return read_report(Path(text)) if text is not None and is_student_folder(text) else {}


def class_names(text: str | None) -> list[str]:
    """Names of a model's outputs where its student folder knows them."""
    return report.class_names(report_of(text))


def seen_before(text: str, data: str) -> str:
    """What a student folder was made with of the very images that are read for an evaluation, as a note; empty if it
    has seen none of them. Of a student that was moved or made of another also what it was before counts.
    """
    judged = folder_digest(data, train=False)
    stages = report.history(read_report(Path(text))) if judged is not None and is_student_folder(text) else []
    if any((stage.get("transfer") or {}).get("data_digest") == judged for stage in stages):
        return "some of these have moved the student to its task: on others it may be right less often"
    for stage in stages:
        # Older students have none; their images are found where the command was run that read them.
        used = stage.get("calibration_digest") or folder_digest(stage.get("calibration"), train=True)
        if used == judged:
            return "some of these have calibrated the student: others may find it further from its teacher"
    return ""


def comparable(images: ImageData, data: str, outputs: int, names: Sequence[str], terminal: Terminal) -> ImageData:
    """The images with labels as the model numbers its classes; without labels, and a note, where that is unknown.

    Args:
        data: what names them.
        outputs: of the model.
        names: of the outputs, by `class_names`; empty where they are unknown: then as many classes count as the same.
    """
    if not images.labelled or images.classes == tuple(names):
        return images
    order = names if len(names) == outputs else images.classes
    why = mismatch(images.classes, order, outputs)
    if why is None:
        if not names and image_folder(data) is not None:
            otherwise = unlike_timm(images.classes)
            terminal.note(
                "labels",
                f"class folders in alphabetical order are taken as classes 0 to {outputs - 1} (the model does not name "
                f"its own){f': {otherwise}' if otherwise else ''}",
            )
        return images.numbered(order)
    terminal.note("top1", f"not measured ({why})")
    return images.unlabelled()


def calibration(
    images: ImageData, model: nn.Module, *, limit: int, batch_size: int, seed: int
) -> tuple[Iterable[Any], int, int]:
    """Shuffled batches (folders are sorted by class) for the model, the number of images and the size of a batch.

    No batch holds a single image: a BatchNorm cannot estimate moments from one position.

    Raises:
        DataError: too few images for three batches of two.
    """
    count = min(limit, len(images))
    if count < LEAST_IMAGES:
        raise DataError(
            f"received {count} calibration images; expected at least {LEAST_IMAGES}, because some are held out; add "
            "images or raise --images"
        )
    size = fine(count, batch_size)
    if count % size == 1:
        count -= 1
    batches = loader(images, batch_size=size, shuffle=True, seed=seed, limit=count, dtype=precision(model))
    return batches, count, size


def fine(count: int, batch_size: int) -> int:
    """Images in a batch, so that there are `LEAST_BATCHES` where that leaves two in each."""
    return min(batch_size, max(2, count // LEAST_BATCHES))


def show_preprocessing(terminal: Terminal, preprocess: Preprocess, overrides: Overrides, whose: str) -> None:
    """How images become inputs, and who said so."""
    numbers = {name: " ".join(f"{v:g}" for v in getattr(preprocess, name)) for name in ("mean", "std")}
    terminal.note(
        "preprocessing",
        f"{' x '.join(map(str, preprocess.input_size))}, mean {numbers['mean']}, std {numbers['std']}, "
        f"{preprocess.interpolation}, crop {preprocess.crop_pct:g} "
        f"(from {whose}{f', except {overrides.given}' if overrides.given else ''})",
    )
