"""Norms that several processes share: a process alone computes what it did, and the network stays what it was."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

import train
from hypercompress import from_pretrained
from hypercompress.errors import HypercompressError
from lightning_modules import callbacks
from lightning_modules.callbacks import SaveStudent
from lightning_modules.syncing import SyncedNorms
from tests.lightning_modules.distilled import Folders, images, system
from tests.lightning_modules.runs import config, start


def kinds(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_byobnet", "levit_128s"])
def test_a_network_computes_the_same_and_comes_back(name: str) -> None:
    """Without a process group a synchronised norm is an ordinary one."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=4)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    size = 224 if name == "levit_128s" else 32
    plain, batch, syncing = copy.deepcopy(network), torch.rand(4, 3, size, size), SyncedNorms()
    own = kinds(network)
    assert syncing.apply(network) is network
    assert any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    for training in (True, False, True):
        wanted, found = (model.train(training)(batch) for model in (plain, network))
        wanted, found = (out[0] if isinstance(out, tuple) else out for out in (wanted, found))
        assert torch.allclose(found, wanted, atol=1e-5)
    network.to(torch.float64)  # as a move to another device it gives the modules other buffers
    syncing.revert(network)
    assert kinds(network) == own
    state = network.state_dict()
    assert all(torch.allclose(v.double(), state[k].double()) for k, v in plain.state_dict().items())
    assert network.double().eval()(batch.double()).dtype == torch.float64


def test_what_is_saved_is_the_network_as_it_was(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student is saved before Lightning puts its norms back."""
    distillation, syncing = system(folders), SyncedNorms()
    monkeypatch.setattr(callbacks, "layer_sync", lambda _: syncing)
    syncing.apply(distillation)
    for each, folder in ((distillation, "synced"), (system(folders), "plain")):
        run = trainer(max_steps=2, limit_val_batches=0, callbacks=[SaveStudent(tmp_path / folder)])
        run.fit(each, images())
        assert not any(isinstance(module, nn.SyncBatchNorm) for module in each.modules())
    synced, other = (from_pretrained(tmp_path / folder) for folder in ("synced", "plain"))
    assert kinds(synced) == kinds(other)
    state = synced.state_dict()
    assert all(torch.allclose(value, state[name], atol=1e-6) for name, value in other.state_dict().items())


def test_the_program_gives_lightning_these(
    root: Path, here: Path, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[object]()

    def note(_: train.CLI, model: object, **options: object) -> None:
        raise HypercompressError("seen")

    made = train.CLI.instantiate_trainer

    def kept(self: train.CLI, **options: object) -> Trainer:
        trainer = made(self, **options)
        assert isinstance(trainer.strategy, DDPStrategy)
        seen.append(trainer.strategy._layer_sync)
        return trainer

    monkeypatch.setattr(train.CLI, "instantiate_trainer", kept)
    monkeypatch.setattr(train.CLI, "_run_subcommand", note)
    words = ["fit", "--config", config(root, "distill"), *start(folders), "--trainer.strategy", "ddp"]
    for asked in ("true", "false"):
        assert train.main([*words, "--trainer.sync_batchnorm", asked]) == 2
    assert isinstance(seen[0], SyncedNorms)
    assert seen[1] is None
