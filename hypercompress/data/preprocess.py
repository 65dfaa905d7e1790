"""From an image file to the tensor a model was trained on: size, crop, mean and standard deviation.

Shape letters: ``c h w`` channels, height and width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from hypercompress.errors import DataError
from hypercompress.noted import own_channels, prepared_size

MODES = {1: "L", 3: "RGB"}
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # two tags of a TIFF, and a value of the second
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True)
class Preprocess:
    """How images become inputs; the conventions are timm's.

    Args:
        input_size: channels (1: grey, 3: RGB), height and width in pixels.
        mean, std: one value per channel, of pixels scaled to [0, 1].
        interpolation: ``nearest``, ``bilinear``, ``bicubic``, ``box``, ``hamming`` or ``lanczos``.
        crop_pct: the crop's side as a share of the resized image's shorter side, in (0, 1].
        crop_mode: ``center`` (resize the shorter side), ``squash`` (resize both), ``border`` (pad the shorter side).

    Raises:
        DataError: a value outside its range, or not one mean and one std for each channel; all faults at once.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        faults = _faults(self)
        if faults:
            raise DataError("; also ".join(faults))

    @classmethod
    def of(
        cls,
        model: nn.Module,
        input_size: Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> "Preprocess":
        """What the model's ``pretrained_cfg`` says, with overrides; the size is that of the images which it takes, as
        it was built (``img_size``, ``in_chans``).

        Args:
            model: timm model, or any module if all three overrides are given.
            input_size: channels, height and width; another height or width than the model's also turns the
                pretrained crop off.
            mean, std: one value per channel, or one value for all channels.

        Raises:
            DataError: something is missing, or does not fit the model's channels.
        """
        cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
        given = {"input_size": input_size, "mean": mean, "std": std}
        missing = [name for name, value in given.items() if value is None and name not in cfg]
        if missing:
            options = " ".join("--" + name.replace("_", "-") for name in missing)
            raise DataError(
                f"received a model without {', '.join(missing)} in its pretrained_cfg; expected to know how its images "
                f"are prepared; pass {options}"
            )
        own = prepared_size(model)
        taken = own_channels(model)
        if taken is not None and taken not in MODES:  # which no option of a command changes
            raise DataError(
                f"received a model that takes images of {taken} channels; expected 1 (grey) or 3 (RGB), which image "
                "files have; prepare batches yourself, and pass them in Python: compress(model, budget, batches), "
                "hypercompress.fidelity.compare(teacher, student, batches)"
            )
        size = _size(own, input_size, taken)
        resized = own is not None and size[1:] != own[1:]
        return cls(
            input_size=size,
            mean=_spread(mean, size[0]) if mean is not None else _floats(cfg["mean"]),
            std=_spread(std, size[0]) if std is not None else _floats(cfg["std"]),
            interpolation=str(cfg.get("interpolation") or "bicubic"),
            crop_pct=1.0 if resized else float(cfg.get("crop_pct") or 1.0),
            crop_mode=str(cfg.get("crop_mode") or "center"),
        )

    def transform(self, augment: bool = False) -> Callable[[Image.Image], Float[Tensor, "c h w"]]:
        """A picklable function from an image to a normalised tensor.

        Args:
            augment: random crops (half of the area or more), flips and, for RGB, slight changes of colour; drawn from
                Python's and torch's global random states.
        """
        steps = create_transform(
            self.input_size,
            is_training=augment,
            scale=(0.5, 1.0),
            color_jitter=0.2 if self.input_size[0] == 3 else (0.0, 0.0, 0.0),
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
        )
        return _Transform(MODES[self.input_size[0]], steps)


class _Transform:
    """Bring an image to the model's channels, then apply timm's steps."""

    def __init__(self, mode: str, steps: Callable[[Image.Image], Tensor]) -> None:
        self.mode = mode
        self.steps = steps

    def __call__(self, image: Image.Image) -> Float[Tensor, "c h w"]:
        if image.mode.startswith("I"):  # 16 bits, as they are or in 32: Pillow would clip them to 255, which is white
            image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
        elif image.mode == "P" and "transparency" in image.info:  # Pillow warns unless this goes by way of RGBA
            image = image.convert("RGBA")
        elif image.mode == "LAB":  # Pillow knows no other way from there
            image = image.convert("RGB")
        return self.steps(image.convert(self.mode))


def of_known_range(image: Image.Image) -> bool:
    """Whether what is black and what is white is known: floats have no such bounds, integers those of 16 bits.

    Args:
        image: as it was opened: a copy has lost the tags of a TIFF.
    """
    if image.mode == "I":
        values = np.asarray(image)
        return bool(values.min() >= 0 and values.max() <= 65535)
    if image.mode.startswith("I;16"):  # Pillow stretches no 12 bits to 16, and turns no white of 0 round
        tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
        return {*tags.get(BITS_PER_SAMPLE, ())} <= {8, 16} and tags.get(PHOTOMETRIC) != WHITE_IS_ZERO
    return image.mode != "F"


def _size(own: Sequence[int] | None, wanted: Sequence[int] | None, taken: int | None) -> tuple[int, int, int]:
    """The input size [c, h, w] that is wanted, or the model's own; its channels are those ``taken``, if known."""
    size = own if wanted is None else tuple(wanted)
    if size is None or len(size) != 3:
        raise DataError(f"received input size {list(size or ())}; expected channels, height and width; pass all three")
    channels, height, width = map(int, size)
    if taken is not None and channels != taken:
        raise DataError(
            f"received an input size of {channels} channels for a model of {taken}; expected equal channels; pass "
            f"--input-size {taken} {height} {width}"
        )
    return channels, height, width


def _spread(values: Sequence[float], channels: int) -> tuple[float, ...]:
    return _floats(values) * channels if len(values) == 1 else _floats(values)


def _floats(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _faults(made: Preprocess) -> list[str]:
    """One line for each value that cannot be."""
    channels, height, width = made.input_size
    faults = []
    if channels not in MODES or height < 1 or width < 1:
        faults.append(
            f"received input size {list(made.input_size)}; expected 1 (grey) or 3 (RGB) channels and sides of 1 pixel "
            "or more; pass --input-size C H W"
        )
    for name, values in {"mean": made.mean, "std": made.std}.items():
        if len(values) != channels:
            places = " ".join(["V"] * max(1, channels))
            faults.append(
                f"received {len(values)} {name} values {list(values)} for images of {channels} channels; expected one "
                f"for each channel; pass --{name} {places}"
            )
        if not all(math.isfinite(value) and (name == "mean" or value > 0) for value in values):
            what = "finite numbers" if name == "mean" else "finite numbers above 0"
            faults.append(f"received {name} {list(values)}; expected {what}; pass --{name} with such values")
    if made.interpolation not in INTERPOLATIONS:
        faults.append(
            f"received interpolation {made.interpolation!r}; expected one of {', '.join(INTERPOLATIONS)}; choose one"
        )
    if not 0.0 < made.crop_pct <= 1.0:
        faults.append(f"received crop_pct {made.crop_pct:g}; expected a share above 0 and at most 1; pass one")
    if made.crop_mode not in ("center", "squash", "border"):
        faults.append(f"received crop_mode {made.crop_mode!r}; expected center, squash or border; choose one")
    return faults
