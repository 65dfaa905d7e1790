"""The backbones of the transfer benchmark, and the images that each is moved to.

Shape letters: ``n`` images; ``c h w`` channels, height and width; ``d`` features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.efficientnet_lite0 import file_of, open_teacher, photographs
from benchmarks.shared.common import ROOT, digest, say
from hypercompress.compress import compress
from hypercompress.data import Preprocess, open_data, read_pool
from hypercompress.data.episodes import Pool
from hypercompress.models import load_model
from hypercompress.specs import Budget
from hypercompress.student import from_pretrained

BATCH = 32  # images of a pass whose activations nobody keeps
SHARE = 0.7  # parameters of the compressed student
TEACHER = ROOT / "hypercompress" / "pretrained" / "fashion_mnist_teacher"
STUDENT = ROOT / "runs" / "transfer" / "lite0-0.7"
LITE0_LIMIT = 400  # images of 224 x 224 that rates are chosen on


@dataclass(frozen=True)
class Backbone:
    """A trained network, the sets it is judged on, and the set on which the baselines' rates are chosen.

    Args:
        name: in the table.
        model: in evaluation mode.
        weights: their digest.
        data: DATA by name, of the sets it is judged on. None of them helped to train the network.
        validation: DATA of another domain.
        limit: images of it that are read; ``None``: all.
    """

    name: str
    model: nn.Module
    weights: str
    data: Mapping[str, str]
    validation: str
    limit: int | None = None
    _pools: dict[tuple[str, bool, int | None], Pool] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return next(self.model.parameters()).device

    def pool(self, text: str, limit: int | None = None) -> Pool:
        """The held-out images of DATA; of a folder with ``train`` and ``val`` both, because few images are in it. They
        stay on the CPU.
        """
        both = (Path(text) / "train").is_dir() and (Path(text) / "val").is_dir()
        key = (text, both, limit)
        if key not in self._pools:
            preprocess = Preprocess.of(self.model)
            parts = [
                read_pool(text, open_data(text, preprocess, train=train), limit)
                for train in ((True, False) if both else (False,))
            ]
            images, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels"))
            self._pools[key] = Pool(text, images, labels)
        return self._pools[key]


def features_of(model: nn.Module, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """What the classifier of a timm model reads, in one pass and in the model's own mode."""
    features: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]
    return features


def frozen_features(model: nn.Module, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """`features_of` without gradients, in batches, on the model's device."""
    device = next(model.parameters()).device
    with torch.no_grad():
        return torch.cat([features_of(model, batch.to(device)) for batch in images.split(BATCH)])


def lite0(assets: Path, network: str = "lite0") -> Backbone:
    """EfficientNet-Lite0 with its ImageNet weights (timm's ``tf_efficientnet_lite0``, 224 pixels), or a larger one."""
    model, _ = open_teacher(assets, network)
    weights = digest(file_of(assets, network))
    return Backbone(network, model, weights, _lite0_data(assets), "fashion_mnist_mini", LITE0_LIMIT)


def lite1(assets: Path) -> Backbone:
    """EfficientNet-Lite1, on which nothing was chosen (240 pixels; its weights by `benchmarks.lite_weights`)."""
    return lite0(assets, "lite1")


def lite0_student(assets: Path) -> Backbone:
    """A student of 0.7 times its parameters, made once: `generate` with the unlabelled photographs of ``train``."""
    if not (STUDENT / "config.json").is_file():
        say(f"student: generating {STUDENT}")
        teacher = lite0(assets).model
        batches = photographs(teacher, str(assets / "photos"), seed=0)
        compress(teacher, Budget(params=SHARE), data=batches).save_pretrained(STUDENT)
    student = from_pretrained(STUDENT)
    return Backbone(
        "lite0-0.7", student.eval(), digest(STUDENT), _lite0_data(assets), "fashion_mnist_mini", LITE0_LIMIT
    )


def fashion(teacher: Path = TEACHER) -> Backbone:
    """A network that was trained on Fashion-MNIST, moved to handwritten digits; rates from rendered characters."""
    model, _ = load_model(str(teacher))
    return Backbone("fashion", model, digest(teacher), {"digits": "digits"}, "glyphs")


def open_backbone(
    name: str, assets: Path | None, teacher: Path = TEACHER, data: Sequence[str] = (), device: str = "cpu"
) -> Backbone:
    """A backbone by name on a device, with other sets to be judged on if ``data`` names some.

    Raises:
        ValueError: see `check_assets`.
    """
    check_assets([name], assets)
    found = fashion(teacher) if assets is None or name == "fashion" else IN_ASSETS[name](assets)
    found = replace(found, model=found.model.to(device))
    if not data:
        return found
    sets = {Path(text).name: text for text in data}
    return replace(found, data=sets)


def check_assets(names: Sequence[str], assets: Path | None) -> None:
    """Before the first slow step.

    Raises:
        ValueError: a backbone whose weights lie in the assets, and none given.
    """
    lacking = [name for name in names if name in IN_ASSETS]
    if lacking and assets is None:
        raise ValueError(
            f"received {' and '.join(lacking)} without --assets; expected the folder with their weights; pass it, or "
            "--backbones fashion"
        )


IN_ASSETS: dict[str, Callable[[Path], Backbone]] = {"lite0": lite0, "lite0-0.7": lite0_student, "lite1": lite1}
BACKBONES = (*IN_ASSETS, "fashion")
USUAL = ("lite0", "lite0-0.7", "fashion")  # where nobody names any


def _lite0_data(assets: Path) -> dict[str, str]:
    return {"photos": str(assets / "photos"), "digits": "digits"}
