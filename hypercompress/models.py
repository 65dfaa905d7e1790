"""Every form of MODEL that a user can name: a timm model or a student folder."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import nn

from hypercompress.architecture import Architecture, load_timm
from hypercompress.architecture.names import near_names
from hypercompress.errors import ArtefactError, ModelError
from hypercompress.saved.artefact import CONFIG
from hypercompress.student import Student, from_pretrained


def is_student_folder(text: str) -> bool:
    """Whether ``text`` names a folder written by `Student.save_pretrained`."""
    return (Path(text) / CONFIG).is_file()


def near_student_folders(text: str) -> list[str]:
    """Student folders whose names are like that of the place that ``text`` names, and that lie beside it."""
    place = Path(text)
    try:
        beside = {path.name: str(path) for path in place.parent.iterdir() if is_student_folder(str(path))}
    except OSError:  # nothing is there, or nothing that may be read
        return []
    return [beside[name] for name in difflib.get_close_matches(place.name, beside, n=3)]


def require_known(text: str) -> None:
    """What is known to be wrong with a MODEL by its name alone.

    Raises:
        ModelError: neither a folder nor a timm model is called so. ArtefactError: a student of a model of its user's
            own class, which cannot be built from what its folder says.
    """
    if is_student_folder(text):
        require_buildable(Path(text))
    elif ":" not in text and not timm.is_model(text):
        raise ModelError(
            f"received {text!r}, neither a student folder nor a timm name; expected one of them; "
            f"{near_names(text, near_student_folders(text))}"
        )


def require_buildable(folder: Path) -> None:
    """Raises ArtefactError if a student folder is of a model that only its user can build."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # told where it is loaded
        return
    if isinstance(config, dict) and config.get("architecture", "") is None:
        raise ArtefactError(
            f"received the student {folder} of a model of your own class, which no command can build; expected one of "
            "a timm model (report alone reads others); in Python call hypercompress.from_pretrained(folder, "
            "skeleton=YourModel()), then the student itself, or hypercompress.export(student, file, input_size=...)"
        )


def described(text: str, checkpoint: Path | None, *, pretrained: bool) -> bool:
    """Whether a model's ``pretrained_cfg`` tells of the weights that it has: not of a checkpoint's or random ones."""
    return is_student_folder(text) or (pretrained and checkpoint is None)


def load_model(
    text: str,
    *,
    checkpoint: Path | None = None,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = True,
    pretrained_cfg: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, Architecture | None]:
    """Load a model and say how to build it again.

    Args:
        text: a timm name (``resnet50.a1_in1k``, ``hf-hub:...``, ``local-dir:...``) or a student folder.
        checkpoint: weights for a timm model: ``.safetensors``, ``.pth`` or ``.pt``.
        model_args: arguments of ``timm.create_model``.
        pretrained: load hub weights if there is no ``checkpoint``.
        pretrained_cfg: entries laid over the model's own, such as ``{"mean": [0.5], "std": [0.5]}``.

    Returns:
        the model in evaluation mode (of a student folder the network inside), and its architecture if timm can build
        it.

    Raises:
        ModelError: an unknown name, or arguments that do not fit. ArtefactError: a folder that cannot be loaded.
        NonFiniteError: NaN or infinity in the weights.
    """
    require_known(text)
    if not is_student_folder(text):
        return load_timm(
            text, checkpoint=checkpoint, model_args=model_args, pretrained=pretrained, pretrained_cfg=pretrained_cfg
        )
    if checkpoint is not None or model_args:
        raise ModelError(
            f"received the student folder {text} with a checkpoint or model arguments; expected the folder alone, "
            "which brings its own; drop them or name a timm model"
        )
    student: Student = from_pretrained(text)
    return student.model, student.architecture
