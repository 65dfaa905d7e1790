"""What no interface of Lightning's gives: each of its own attributes that is read or set here has one function."""

import signal
from collections.abc import Callable
from typing import Any

import lightning
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.strategies import DDPStrategy

from hypercompress.errors import HypercompressError


def layer_sync(trainer: Trainer) -> LayerSync | None:
    """What converts the norms of several processes; ``None`` where nothing does.

    Raises:
        HypercompressError: this Lightning keeps it elsewhere.
    """
    if not isinstance(trainer.strategy, DDPStrategy):
        return None
    found: LayerSync | None = _attribute(trainer.strategy, "_layer_sync")
    return found


def set_layer_sync(trainer: Trainer, syncing: LayerSync) -> None:
    """Have that convert the norms of several processes. Raises HypercompressError as `layer_sync` does."""
    _replace(trainer.strategy, "_layer_sync", syncing)


def counts_versions(saving: ModelCheckpoint) -> bool:
    """Whether a second checkpoint of one name is put beside the first.

    Raises:
        HypercompressError: this Lightning does not say it.
    """
    return bool(_attribute(saving, "_enable_version_counter"))


def last_checkpoints(saving: ModelCheckpoint, trainer: Trainer) -> set[str]:
    """Those that ``--ckpt_path last`` chooses from.

    Raises:
        HypercompressError: this Lightning has no such list.
    """
    found: set[str] = _attribute(saving, "_find_last_checkpoints")(trainer)
    return found


def handler_before(trainer: Trainer, number: signal.Signals) -> Callable[..., Any] | int | None:
    """What answered a signal before Lightning did.

    Raises:
        HypercompressError: this Lightning does not keep it.
    """
    found: Callable[..., Any] | int | None = _attribute(_signals(trainer), "_original_handlers").get(number)
    return found


def stop(trainer: Trainer) -> None:
    """Have the run end as by SIGTERM, where Lightning looks for it next.

    Raises:
        HypercompressError: this Lightning does not note it so.
    """
    _replace(_signals(trainer), "received_sigterm", True)


def break_off_validation(trainer: Trainer) -> None:
    """Have a checkpoint say that a validation has begun and that no batch of it is done.

    Lightning makes up for that one where a run goes on, and for no other.
    """
    progress = _validation(trainer).batch_progress
    progress.reset()
    progress.increment_ready()
    progress.increment_started()


def forget_validation(trainer: Trainer) -> None:
    """In a run that goes on, once Lightning knows that one is to be made up for: its checkpoints are not to say it."""
    _validation(trainer).batch_progress.total.reset_on_restart()


def finish_validation(trainer: Trainer) -> None:
    """Make up for a validation that Lightning has not, as no step follows."""
    total = _validation(trainer).batch_progress.total
    if total.ready != total.completed:
        trainer.validating = True
        _validation(trainer).run()
        trainer.training = True


def count_steps(trainer: Trainer) -> None:
    """Have loggers count the steps as the optimiser does: where a validation was due at the step that a run goes on
    from, Lightning counts that step twice.

    Raises:
        HypercompressError: this Lightning has no such number.
    """
    _replace(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step)


def close_epoch(trainer: Trainer) -> None:
    """Have a checkpoint of an epoch that is over say that none of its batches is done of the next one.

    Else a run of so many steps goes on in the next epoch after the batches of this one, and uses others than it would.
    """
    epochs, loop = trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop
    if epochs.completed == epochs.ready and loop.batch_progress.current.ready >= trainer.num_training_batches:
        for progress in (loop.batch_progress, loop.scheduler_progress, loop.automatic_optimization.optim_progress):
            progress.reset_on_run()


def _validation(trainer: Trainer) -> Any:
    """The loop of the validations of a fit."""
    return trainer.fit_loop.epoch_loop.val_loop


def _signals(trainer: Trainer) -> Any:
    return _attribute(trainer, "_signal_connector")


def _attribute(of: object, name: str) -> Any:
    try:
        return getattr(of, name)
    except AttributeError as error:
        raise HypercompressError(
            f"received Lightning {lightning.__version__}, whose {type(of).__name__} has no {name}; expected one that "
            "has it, as 2.6.6 does; install lightning==2.6.6, and please report this"
        ) from error


def _replace(of: object, name: str, value: object) -> None:
    _attribute(of, name)  # one that is gone would be set without effect
    setattr(of, name, value)
