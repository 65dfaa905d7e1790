"""What is read of Lightning beside its interface is there, and a Lightning without it is named in one line."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from hypercompress.errors import HypercompressError
from lightning_modules import internals
from lightning_modules.syncing import SyncedNorms


def of_processes(trainer: Callable[..., Trainer]) -> Trainer:
    return trainer(strategy="ddp", devices=2, sync_batchnorm=True)


def test_they_do_what_they_say(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    alone, several, syncing = trainer(), of_processes(trainer), SyncedNorms()
    assert internals.layer_sync(alone) is None
    assert internals.layer_sync(several) is not None
    internals.set_layer_sync(several, syncing)
    assert internals.layer_sync(several) is syncing
    assert [internals.counts_versions(ModelCheckpoint(enable_version_counter=on)) for on in (True, False)] == [1, 0]
    (tmp_path / "last.ckpt").touch()
    assert internals.last_checkpoints(ModelCheckpoint(tmp_path), alone) == {str(tmp_path / "last.ckpt")}
    assert internals.handler_before(alone, signal.SIGTERM) is None  # not in a run
    alone._signal_connector._original_handlers = {signal.SIGTERM: signal.SIG_IGN}
    assert internals.handler_before(alone, signal.SIGTERM) == signal.SIG_IGN
    assert not alone.received_sigterm
    internals.stop(alone)
    assert alone.received_sigterm


class Emptied:
    """Of an attribute that a class or its instances have no more."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, of: object, owner: object = None) -> Any:
        raise AttributeError(self.name)

    def __set__(self, of: object, value: object) -> None:
        raise AssertionError("set all the same")


@pytest.mark.parametrize(
    ("of", "name", "ask"),
    [
        (DDPStrategy, "_layer_sync", lambda run, _: internals.layer_sync(run)),
        (DDPStrategy, "_layer_sync", lambda run, _: internals.set_layer_sync(run, SyncedNorms())),
        (ModelCheckpoint, "_enable_version_counter", lambda _, saving: internals.counts_versions(saving)),
        (ModelCheckpoint, "_find_last_checkpoints", lambda run, saving: internals.last_checkpoints(saving, run)),
        (Trainer, "_signal_connector", lambda run, _: internals.handler_before(run, signal.SIGTERM)),
        (_SignalConnector, "_original_handlers", lambda run, _: internals.handler_before(run, signal.SIGTERM)),
        (_SignalConnector, "received_sigterm", lambda run, _: internals.stop(run)),
    ],
)
def test_one_that_is_gone_is_named(
    of: type,
    name: str,
    ask: Callable[[Trainer, ModelCheckpoint], object],
    trainer: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, saving = of_processes(trainer), ModelCheckpoint()
    monkeypatch.setattr(of, name, Emptied(name), raising=False)
    said = rf"received Lightning \d+\.\S+, whose {of.__name__} has no {name}; expected one that has it, as 2\.6\.6 does"
    with pytest.raises(HypercompressError, match=said):
        ask(run, saving)
