"""Train, distil and meta-train: ``python train.py fit|validate|test --config configs/NAME.yaml [--KEY VALUE ...]``."""

import logging
import signal
import sys
import warnings
from collections.abc import Iterator, MutableMapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    LearningRateFinder,
    ModelCheckpoint,
    OnExceptionCheckpoint,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from hypercompress.cli.checks import writable
from hypercompress.errors import HypercompressError, one_line
from hypercompress.running.memory import keep_freed
from lightning_modules.callbacks import StepLines, TellReplaced
from lightning_modules.failing import refused, told
from lightning_modules.internals import last_checkpoints, layer_sync, set_layer_sync
from lightning_modules.stopping import SaveWhenStopped
from lightning_modules.syncing import SyncedNorms
from lightning_modules.usage import Parser

KEYWORDS = ("best", "last", "hpc", "registry")  # of Lightning's, for checkpoints of the run itself
OUTPUTS = ("default_root_dir", "save_dir", "dirpath", "folder", "out")  # what the configs call the places they write to
WEIGHTS = {  # what weights alone are for, by the system
    "Teacher": "weights alone are for --model.checkpoint",
    "Distillation": "a student folder is for --model.student, the teacher's weights are for --model.teacher.checkpoint",
}


class CLI(LightningCLI):
    """LightningCLI over the systems of ``lightning_modules``; the config that ran is kept beside the logs.

    A checkpoint is read with ``weights_only=True``: it is data, and runs no code.
    """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Those that the systems have a step for."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in ("fit", "validate", "test")}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """And refuse a ``--ckpt_path`` that is none, before Lightning reads settings from it."""
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        fits = self.config.subcommand == "fit"
        require_checkpoint(config.get("ckpt_path"), config.model.class_path.rpartition(".")[2], fits)
        name_choices(config.trainer.callbacks)

    def read_data_only(self) -> None:
        """Lightning would leave this to torch, or for an address on the network read anything.

        Raises:
            HypercompressError: there is no last checkpoint to validate (`require_last`).
        """
        assert self.subcommand is not None
        options = self.config_init[self.subcommand]
        options["weights_only"] = True
        require_last(self.trainer, options.get("ckpt_path"), self.subcommand == "fit")

    before_fit = before_validate = before_test = read_data_only

    def before_instantiate_classes(self) -> None:
        """With ``--run`` all that the config writes goes there; what a fit writes has to be writable.

        Raises:
            HypercompressError: there is no such place, or an output is elsewhere.
        """
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        if config.run is not None:
            root = config.trainer.default_root_dir
            if not config.run or root is None:
                raise HypercompressError(
                    f"received --run {config.run!r} and trainer.default_root_dir {root}; expected a folder for this "
                    "run, and the one that the config's outputs lie in; pass both"
                )
            move_outputs(config.trainer, Path(root), Path(config.run).expanduser())
            move_outputs(config.model.init_args, Path(root), Path(config.run).expanduser())
        if self.subcommand == "fit":
            for part, key in outputs([config.trainer, config.model]):
                writable(Path(part[key]))
            tell_unused_root(config)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Lightning's trainer.

        Raises:
            HypercompressError: Lightning refuses its settings, or its strategy splits a network over processes.
        """
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except HypercompressError:
            raise
        except (MisconfigurationException, ValueError) as error:
            raise HypercompressError(refused(error)) from error
        whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
        if not whole or isinstance(trainer.strategy, DeepSpeedStrategy):
            raise HypercompressError(
                f"received the strategy {type(trainer.strategy).__name__}; expected auto or ddp: students are measured "
                "and saved whole, so each process holds a whole network; pass --trainer.strategy ddp"
            )
        if layer_sync(trainer) is not None:
            set_layer_sync(trainer, SyncedNorms())
        require_callbacks(trainer)
        return trainer

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """``--run`` beside model, data and trainer."""
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            metavar="FOLDER",
            help="folder of this run: what the config writes below trainer.default_root_dir is written below it",
        )
        parser.set_defaults({"trainer.enable_model_summary": False})


def require_callbacks(trainer: Trainer) -> None:
    """Raises HypercompressError if a callback asks the systems for what they have not."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BatchSizeFinder):
            raise HypercompressError(
                "received the callback BatchSizeFinder, which changes the batches of a run that has begun; expected "
                "one that leaves them alone; leave it out, and set --data.batch_size"
            )
        if isinstance(callback, LearningRateFinder | BackboneFinetuning):
            raise HypercompressError(
                f"received the callback {type(callback).__name__}, which asks the system for an attribute lr or "
                "backbone; expected one that works with any; leave it out, and set --model.optimization"
            )


def require_checkpoint(path: str | None, system: str, fits: bool) -> None:
    """Check what ``--ckpt_path`` names; `KEYWORDS` and addresses on the network are left to Lightning.

    Args:
        system: the name of its class, which decides where else weights may be meant for (`WEIGHTS`).
        fits: whether a run is to go on from it, which takes more than the weights.

    Raises:
        HypercompressError: there is no such file, it cannot be read, or it is no checkpoint of a run, or not all of it.
    """
    if path is None or path in KEYWORDS or "://" in path:
        return
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises some ten kinds
        raise HypercompressError(
            f"received --ckpt_path {path}, which cannot be read ({type(error).__name__}: {one_line(error)}); expected "
            "a checkpoint that a run of this config wrote; check the path"
        ) from error
    if not isinstance(found, dict) or not {"state_dict", "loops"} <= found.keys():
        raise HypercompressError(
            f"received --ckpt_path {path}, which is no checkpoint of a run; expected one that train.py wrote, such as "
            f"last.ckpt; {WEIGHTS.get(system, 'check the path')}"
        )
    if fits and "optimizer_states" not in found:
        raise HypercompressError(
            f"received --ckpt_path {path}, which was saved with save_weights_only; expected one with the state of the "
            "optimiser, too, as the run goes on with it; leave save_weights_only out of the ModelCheckpoint"
        )


def require_last(trainer: Trainer, path: str | None, fits: bool) -> None:
    """Look for what ``--ckpt_path last`` names. Without it a fit begins anew, as one that is started again and again
    does the first time; Lightning would validate what the model starts as, too.

    Raises:
        HypercompressError: there is none to validate.
    """
    savings = trainer.checkpoint_callbacks if path == "last" else []
    found = any(last_checkpoints(saving, trainer) for saving in savings if isinstance(saving, ModelCheckpoint))
    found |= any(Path(saving.ckpt_path).exists() for saving in savings if isinstance(saving, OnExceptionCheckpoint))
    if path != "last" or found:
        return
    if not fits:
        raise HypercompressError(
            "received --ckpt_path last, but this run has left no last checkpoint; expected one of a fit of it; train "
            "first, or pass the path of a checkpoint"
        )
    rank_zero_info("--ckpt_path last: there is none yet, so the run begins anew")


def name_choices(callbacks: Any) -> None:
    """Write the values of enumerations among the settings of callbacks as words, in place: jsonargparse cannot write
    those that a default brings, such as the interval of `Timer`.
    """
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        given = callback.get("init_args") if isinstance(callback, Namespace) else None
        for key, value in list(vars(given).items()) if isinstance(given, Namespace) else ():
            if isinstance(value, Enum):
                callback.init_args[key] = value.value


def move_outputs(config: Any, old: Path, new: Path) -> None:
    """Put the outputs of a part of a config (see `OUTPUTS`), which lie below one folder, below another, in place.

    Raises:
        HypercompressError: one lies elsewhere, so that it would not be part of the run.
    """
    for part, key in outputs(config):
        value = part[key]
        if Path(value).absolute().is_relative_to(old.absolute()):
            part[key] = type(value)(new / Path(value).absolute().relative_to(old.absolute()))
        else:
            raise HypercompressError(
                f"received --run {new} with {key} {value}, which is not below trainer.default_root_dir {old}; expected "
                "all outputs of the config there; set that option as well, or leave --run out"
            )


def tell_unused_root(config: Any) -> None:
    """Warn of a ``--trainer.default_root_dir`` that none of the outputs lies below."""
    root = config.trainer.default_root_dir
    found = {str(part[key]) for part, key in outputs([config.trainer, config.model]) if key != "default_root_dir"}
    if root is None or not found:
        return
    if not any(Path(path).absolute().is_relative_to(Path(root).absolute()) for path in found):
        rank_zero_warn(
            f"trainer.default_root_dir {root} holds none of what this run writes ({', '.join(sorted(found))}); --run "
            f"{root}, with the default_root_dir of the config, puts all of it there"
        )


def outputs(config: Any) -> Iterator[tuple[Any, str]]:
    """The places that a part of a config writes to (see `OUTPUTS`), each as what holds it and its key there."""
    if isinstance(config, list):
        for item in config:
            yield from outputs(item)
    elif isinstance(config, Namespace | MutableMapping):
        for key, value in list(vars(config).items() if isinstance(config, Namespace) else config.items()):
            if key in OUTPUTS and value is not None:
                yield config, key
            else:
                yield from outputs(value)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0, or 2 with one line on bad input, or 143 when SIGTERM has stopped it, 130 by Ctrl-C."""
    keep_freed()
    # Small sets are batched in memory (lightning_modules/data.py), where more processes would only cost.
    warnings.filterwarnings("ignore", "The '.*_dataloader' does not have many workers")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # said by TellReplaced
    warnings.filterwarnings("ignore", ".*no last checkpoint available")  # said by require_last
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.. is deprecated")  # Lightning's own
    for handler in logging.getLogger("lightning.pytorch").handlers:
        handler.addFilter(lambda record: "litlogger" not in record.getMessage())
    options: dict[str, Any] = {
        "subclass_mode_model": True,
        "subclass_mode_data": True,
        "parser_class": Parser,
        "seed_everything_default": 0,
        "auto_configure_optimizers": False,  # every system has --model.optimization, which --optimizer would pass by
        "save_config_kwargs": {"overwrite": True},
    }
    stopping = SaveWhenStopped()
    options["trainer_defaults"] = {"callbacks": [TellReplaced(), stopping, StepLines()]}
    try:
        CLI(LightningModule, LightningDataModule, args=arguments, **options)
    except SIGTERMException:
        return 128 + (stopping.stopped_by or signal.SIGTERM)
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning makes the second of the first
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        return 128 + signal.SIGINT
    except Exception as error:
        known = told(error, stopping.latest)
        if known is None:
            raise
        sys.stderr.write(f"error: {known}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
