"""What meta-training draws its steps from: how many of what, and a teacher with its images."""

from dataclasses import dataclass

from torch import Tensor

from hypercompress.meta import Case
from lightning_modules.optimization import SettingError


@dataclass(frozen=True)
class Episodes:
    """What the steps are drawn from.

    Args:
        images: images in a batch.
        calibration: images behind each teacher's curvature.
        look_ahead: distillation steps to choose from; 0 is the student as generated.
        refit: share of the episodes with data and without distillation that refit the student, in [0, 1].
        refit_images: calibration images that such a student is refitted on.
        free: share of the steps without data, in [0, 1].
        validation: images of the held-out part on which students are judged.
        validation_steps: distillation steps of the look-ahead column of the validation.
        teachers: names of the zoo's teachers that take part; empty: all.
        leave_out: one that is never trained on, but judged at each validation, in columns of its own; none of the
            validation's scores that choose the checkpoint is its.

    Raises:
        SettingError: a number or a share out of range, or no ``look_ahead`` to choose from.
    """

    images: int = 64
    calibration: int = 1024
    look_ahead: tuple[int, ...] = (0, 0, 5)
    refit: float = 0.5
    refit_images: int = 512
    free: float = 0.3
    validation: int = 512
    validation_steps: int = 20
    teachers: tuple[str, ...] = ()
    leave_out: str | None = None

    def __post_init__(self) -> None:
        shares = {key: getattr(self, key) for key in ("refit", "free")}
        counts = {key: getattr(self, key) for key in ("images", "calibration", "refit_images", "validation")}
        faults = [
            f"{key} {value:g}, expected a share in [0, 1]" for key, value in shares.items() if not 0 <= value <= 1
        ]
        faults += [f"{key} {value}, expected 1 or more" for key, value in counts.items() if value < 1]
        if not self.look_ahead or min(self.look_ahead) < 0:
            faults += [f"look_ahead {list(self.look_ahead)}, expected at least one number of steps, each 0 or more"]
        if self.validation_steps < 0:
            faults += [f"validation_steps {self.validation_steps}, expected 0 or more"]
        if faults:
            raise SettingError(f"received episodes with {'; '.join(faults)}; change model.episodes")


@dataclass(frozen=True)
class Member:
    """A teacher of the zoo with its images at hand.

    Args:
        calibration: what a student is refitted on.
        train: the training images, which all teachers of a data set share; ``places`` are those of the steps.
        held_out: what students are judged on.
        weights: the teacher's, as `lightning_modules.resuming.hash_of` tells them apart.
    """

    case: Case
    calibration: Tensor
    train: Tensor
    places: Tensor
    held_out: Tensor
    weights: str
