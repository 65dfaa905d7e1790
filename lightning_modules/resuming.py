"""What a run may go on from: a checkpoint of the same network, start, images and losses, optimised as it was."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from lightning_modules.data import images_of
from lightning_modules.optimization import Optimization, SettingError

# The schedule and the number of steps may change: they are no state of the optimiser's.
KEPT = ("optimizer", "lr", "weight_decay", "momentum")


class Resumable(LightningModule):
    """A system that refuses checkpoints it cannot go on from, or would go on from otherwise than it says.

    Attributes:
        optimization: its own.
        start: what a run of it starts from and follows, in words.
    """

    optimization: Optimization
    start: Mapping[str, str] = MappingProxyType({})

    def identity(self) -> dict[str, str]:
        """What makes a run this one and no other."""
        data = images_of(self)
        return {**({} if data is None else data.identity()), **_in_a_step(self._trainer), **self.start}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Which run it is and how it is optimised; what is left of the optimiser goes on with a resumed one."""
        checkpoint.update(optimization=asdict(self.optimization), identity=self.identity())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check it; also ahead of a validation, as far as the network goes.

        Lightning casts a system to double precision after it has loaded the weights, which would round them.

        Raises:
            SettingError: of another network, or of a run from another start, on other images, or optimised otherwise.
        """
        require_same_network(self, checkpoint["state_dict"])
        if self.trainer.state.fn == TrainerFn.FITTING:
            require_same_run(self.identity(), checkpoint.get("identity"))
            require_same_optimization(self.optimization, checkpoint.get("optimization"))
        if self.trainer.precision == "64-true":
            self.double()


def settings(name: str, config: Any) -> dict[str, str]:
    """Each field of a dataclass in words, so that a message names the one that differs."""
    return {f"{name}.{key}": str(value) for key, value in asdict(config).items()}


def _in_a_step(trainer: Trainer | None) -> dict[str, str]:
    """How many batches make a step: of each process, where that does not change on the way, and of how many."""
    if trainer is None:
        return {}
    found = {"processes": str(trainer.world_size)}
    if not any(isinstance(c, GradientAccumulationScheduler) for c in trainer.callbacks):  # type: ignore[attr-defined]
        found["accumulate_grad_batches"] = str(trainer.accumulate_grad_batches)
    return found


def require_same_network(system: LightningModule, weights: Mapping[str, Tensor]) -> None:
    """Raises SettingError if names or shapes of a checkpoint's tensors are not those of the system."""
    ours, theirs = ({name: tuple(v.shape) for name, v in of.items()} for of in (system.state_dict(), weights))
    wrong = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if wrong:
        raise SettingError(
            f"received a checkpoint of another network: {len(wrong)} of its tensors are not those of "
            f"{type(system).__name__}, such as {wrong[0]}; expected one that a run of this config wrote; check "
            "--ckpt_path"
        )


def require_same_run(ours: Mapping[str, str], theirs: Mapping[str, str] | None) -> None:
    """Raises SettingError if a checkpoint is of a run from another start, on other images or of other losses.

    Args:
        theirs: ``None`` in checkpoints of earlier versions, which do not say it; what they do not say is not asked.
    """
    known = {} if theirs is None else theirs
    changed = [f"{name} {known[name]} instead of {now}" for name, now in ours.items() if known.get(name, now) != now]
    if changed:
        raise SettingError(
            f"received a checkpoint of another run: {'; '.join(changed)}; expected one that this very run wrote; check "
            "--ckpt_path, or leave it out and start anew"
        )


def hash_of(network: nn.Module | None) -> str:
    """The same for the same weights, wherever they lie; ``none`` of no network."""
    if network is None:
        return "none"
    found = hashlib.sha256()
    for name, value in network.state_dict().items():
        found.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:12]


def weights_of(named: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For each name what `hash_of` says of the weights that go by it: another network may take the place of a name."""
    found: dict[str, str] = {}
    for name, weights in named:
        key = f"weights of {name}"
        found[key] = f"{found[key]}, {weights}" if key in found else weights
    return found


def require_same_optimization(ours: Optimization, theirs: Mapping[str, Any] | None) -> None:
    """Raises SettingError if a checkpoint's optimiser would go on as it was instead of as the config says.

    Args:
        theirs: ``None`` in checkpoints of earlier versions, which do not say it.
    """
    ahead = {name: (theirs[name], getattr(ours, name)) for name in KEPT if theirs is not None}
    changed = [f"{name} {was} instead of {now}" for name, (was, now) in ahead.items() if was != now]
    if changed:
        raise SettingError(
            f"received a checkpoint of a run with {', '.join(changed)}; expected the same, as the optimiser goes on "
            "from where it was; take the run's own settings, or start a new run from its result"
        )
