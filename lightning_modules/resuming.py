"""What a run may go on from: a checkpoint of the same network, optimised as it was."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_modules.optimization import Optimization, SettingError

# The schedule and the number of steps may change: they are no state of the optimiser's.
KEPT = ("optimizer", "lr", "weight_decay", "momentum")


class Resumable(LightningModule):
    """A system that refuses checkpoints it cannot go on from, or would go on from otherwise than it says.

    Attributes:
        optimization: its own.
    """

    optimization: Optimization

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """How the run is optimised; what is left of the optimiser goes on with a resumed one."""
        checkpoint["optimization"] = asdict(self.optimization)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check it; also ahead of a validation, as far as the network goes.

        Raises:
            SettingError: of another network, or optimised in another way.
        """
        require_same_network(self, checkpoint["state_dict"])
        if self.trainer.state.fn == TrainerFn.FITTING:
            require_same_optimization(self.optimization, checkpoint.get("optimization"))


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
