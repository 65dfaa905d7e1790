"""Where the teacher of a distillation comes from, and what images it wants."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.utils.hooks import RemovableHandle

from hypercompress.data import Preprocess, other_normalization, renormalize_
from hypercompress.errors import ModelError
from hypercompress.models import described, load_model

OPTIONS = {  # of the command line that messages speak of, and what they are called here
    "--model-args": "--model.teacher.model_args",
    "--checkpoint": "--model.teacher.checkpoint",
    "--no-pretrained": "--model.teacher.pretrained false",
}


@dataclass(frozen=True)
class TeacherSource:
    """The teacher, in any form of MODEL.

    Args:
        model: a timm name or a student folder.
        checkpoint: weights of a timm model.
        model_args: arguments of ``timm.create_model``.
        pretrained: load hub weights if there is no checkpoint.
        mean, std: of the images that it was trained on, one value per channel or one for all. By default what its
            ``pretrained_cfg`` says; of a checkpoint, which says nothing, what the student's images have.
    """

    model: str
    checkpoint: Path | None = None
    model_args: dict[str, Any] | None = None
    pretrained: bool = True
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def load(self) -> nn.Module:
        """The network, frozen, in evaluation mode.

        Raises:
            ModelError: there is none; with the options that name it, as the one of a config is easily overlooked.
        """
        try:
            network, _ = load_model(
                self.model, checkpoint=self.checkpoint, model_args=self.model_args, pretrained=self.pretrained
            )
        except ModelError as error:
            said = str(error)
            for word, ours in OPTIONS.items():
                said = said.replace(word, ours)
            raise ModelError(
                f"{said}; this is the teacher: name it with --model.teacher.model, or train with labels alone: "
                "--model.teacher null --model.losses.logits 0 --model.losses.features 0 --model.losses.labels 1 "
                "--model.optimization.lr 0.001"
            ) from error
        return network.eval().requires_grad_(False)

    def renormalize_(self, network: nn.Module, given: Preprocess) -> RemovableHandle | None:
        """Where it is known how the loaded network's images were normalised in its training, and that differs from
        ``given``, its images are brought to that from now on; the handle undoes it. ``None`` where nothing was done.

        Raises:
            DataError: ``mean`` or ``std`` do not fit.
        """
        known = described(self.model, self.checkpoint, pretrained=self.pretrained)
        if not known and self.mean is None and self.std is None:
            return None
        own = other_normalization(network, given, self.mean, self.std)
        if own is None:
            return None
        rank_zero_info(
            f"images of mean {list(given.mean)}, std {list(given.std)} are brought to the teacher's mean "
            f"{list(own.mean)}, std {list(own.std)}; with model.teacher.mean and std it has others"
        )
        return renormalize_(network, given, own)


class Outside:
    """Keeps a module out of the one that uses it: no sub-module, and not copied with it (for a moving average)."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> "Outside":
        return self
