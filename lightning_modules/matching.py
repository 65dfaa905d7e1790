"""What two networks can be compared on: one pass of an empty batch through both tells it before training does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from hypercompress.errors import ModelError, one_line
from hypercompress.running.calling import call_model, evaluating, placed, refused
from hypercompress.running.hooks import hooked
from lightning_modules.losses import Losses


@dataclass(frozen=True)
class Shapes:
    """Shapes of what a network returned for two images.

    Args:
        logits: of the output.
        maps: of the outputs of named modules, call by call; ``None`` for what is no single tensor.
    """

    logits: tuple[int, ...]
    maps: dict[str, list[tuple[int, ...] | None]]


def in_common(student: nn.Module, teacher: nn.Module) -> tuple[str, ...]:
    """The modules that timm's ``feature_info`` of the student names and that both networks have."""
    info = getattr(student, "feature_info", None) or []
    names = [item["module"] for item in info if isinstance(item, dict) and item.get("module")]
    theirs, ours = ({name for name, _ in model.named_modules()} for model in (teacher, student))
    return tuple(name for name in names if name in ours and name in theirs)


def probed(network: nn.Module, names: Sequence[str], size: Sequence[int], whose: str) -> Shapes:
    """Run two empty images through a network.

    Args:
        names: dotted paths of the modules to look at.
        size: channels, height and width in pixels.
        whose: ``student`` or ``teacher``, for the message.

    Raises:
        ModelError: it does not take such images, or returns something other than one tensor.
    """
    maps: dict[str, list[tuple[int, ...] | None]] = {name: [] for name in names}

    def keep(name: str, output: Any) -> None:
        maps[name].append(tuple(output.shape) if isinstance(output, Tensor) else None)

    def told(error: Exception) -> ModelError:
        return ModelError(
            f"received images of {' x '.join(map(str, size))} that the {whose} does not take ({one_line(error)}); "
            "expected a size that student and teacher were built for; change data.inputs.input_size or the teacher's "
            "model_args"
        )

    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: keep(name, output)
        )
        for name in names
    ]
    with hooked(handles), refused(told), evaluating(network), torch.no_grad():
        logits = call_model(network, placed(torch.zeros(2, *size), network))
    return Shapes(tuple(logits.shape), maps)


def matched(
    student: nn.Module, teacher: nn.Module, names: Sequence[str], size: Sequence[int], losses: Losses
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The shape of the logits of two images, and which of the named feature maps can be compared; it says which cannot.

    Args:
        names: dotted paths of modules that both networks have.
        size: channels, height and width in pixels.
        losses: what the student is to follow.

    Raises:
        ModelError: the two differ in the shape of their logits, one does not take the images, or maps alone are
            followed and no two are alike.
    """
    ours = probed(student, names, size, "student")
    watched, wrong = comparable(ours, probed(teacher, names, size, "teacher"))
    if losses.features > 0:
        rank_zero_info(f"feature loss on: {', '.join(watched) or 'nothing (no feature maps in common)'}")
    if wrong:
        listed = "; ".join(f"{name} ({fault})" for name, fault in wrong.items())
        rank_zero_info(f"feature loss leaves out: {listed}")
    losses.require_maps(watched, f"whose feature maps all differ from the teacher's or are no tensors ({len(wrong)})")
    return ours.logits, watched


def comparable(student: Shapes, teacher: Shapes) -> tuple[tuple[str, ...], dict[str, str]]:
    """The names whose outputs are single tensors of equal shapes, and the others with what is wrong with them.

    Raises:
        ModelError: the logits differ in shape.
    """
    if student.logits != teacher.logits:
        raise ModelError(
            f"received outputs of {list(student.logits[1:])} from the student and {list(teacher.logits[1:])} from the "
            "teacher; expected equal shapes; name the teacher that the student was made from, or give it the student's "
            "model_args"
        )
    faults = {name: _fault(shapes, teacher.maps[name]) for name, shapes in student.maps.items()}
    wrong = {name: fault for name, fault in faults.items() if fault}
    return tuple(name for name in faults if name not in wrong), wrong


def _fault(student: list[tuple[int, ...] | None], teacher: list[tuple[int, ...] | None]) -> str:
    """Why two modules cannot be compared; empty if they can."""
    if not student or not teacher:
        return "is not called"
    if None in student or None in teacher:
        return "returns no single tensor"
    if student != teacher:
        ours, theirs = (" ".join(str(list((shape or ())[1:])) for shape in shapes) for shapes in (student, teacher))
        return f"{ours} in the student, {theirs} in the teacher"
    return ""
