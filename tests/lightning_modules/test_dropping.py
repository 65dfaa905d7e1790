"""Steps that follow a teacher drop nothing; steps by labels drop what the network drops."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import Trainer
from timm.layers import DropPath
from torch import Tensor, nn

from benchmarks.shared.common import Set
from benchmarks.shared.distillation import Recipe, distil
from hypercompress import from_pretrained
from hypercompress.running.norms import remembering_norms
from lightning_modules.distillation import Distillation
from lightning_modules.dropping import dropping_nothing, rates_of
from lightning_modules.losses import Losses
from lightning_modules.optimization import Optimization
from lightning_modules.source import TeacherSource
from tests.lightning_modules.distilled import Folders, images

SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}
VIT = {"drop_rate": 0.5, "pos_drop_rate": 0.5, "patch_drop_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5}
BLOCKS = {"drop_rate": 0.5, "drop_path_rate": 0.5, "drop_block_rate": 0.5}


class Recurrent(nn.Module):
    """Layers of torch that drop inside a function."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, num_layers=2, batch_first=True, dropout=0.5)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.lstm(x.flatten(2).transpose(1, 2)[..., :1].expand(-1, -1, 8))[0][:, :16]
        return self.attention(tokens, tokens, tokens)[0].mean(1)


def made(name: str, arguments: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return Recurrent() if name == "torch" else timm.create_model(name, num_classes=10, **arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("swin_tiny_patch4_window7_224", SWIN),
        ("test_vit", {"img_size": 32, "patch_size": 8, "drop_path_rate": 0.5, **VIT}),
        ("test_resnet", BLOCKS),
        ("test_efficientnet", {"drop_rate": 0.5, "drop_path_rate": 0.5}),
        ("ghostnet_050", {}),
        ("torch", {}),
    ],
    ids=["swin", "vit", "resnet", "efficientnet", "ghostnet", "torch"],
)
def test_a_network_that_trains_answers_as_in_evaluation(name: str, arguments: dict[str, Any]) -> None:
    """But for BatchNorm. By default Swin drops paths and GhostNet features."""
    network, batch = made(name, arguments), torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        wanted = network.eval()(batch)
        network.train()
        for norm in remembering_norms(network):
            norm.eval()
        rates, state = rates_of(network), torch.get_rng_state()
        with dropping_nothing(network):
            assert not rates_of(network)
            assert torch.allclose(network(batch), wanted, atol=1e-5)
            assert torch.equal(torch.get_rng_state(), state), "nothing is drawn"
        assert not torch.allclose(network(batch), wanted, atol=1e-5), "this network drops"
    assert rates_of(network) == rates


def test_rates_come_back_after_an_error_and_other_numbers_stay() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.25), DropPath(0.125), nn.LayerNorm(4, eps=0.5))
    network.p = 0.75
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), dropping_nothing(network):
        network(torch.ones(2, 3))
    assert [rate for _, _, rate in rates_of(network)] == [0.25, 0.125]
    assert (network[3].eps, network.p) == (0.5, 0.75)


def weights(
    folders: Folders, trainer: Callable[..., Trainer], losses: Losses, rate: float, recomputed: bool = False
) -> list[Tensor]:
    system = Distillation(folders[1], TeacherSource(str(folders[0])), losses, Optimization("adamw", 1e-3, 0.0))
    system.network.set_grad_checkpointing(recomputed)
    system.network.drop_rate = rate
    system.network.blocks[1][0].aa = DropPath(rate)
    trainer(max_steps=2, limit_val_batches=0).fit(system, images(limit=64))
    assert system.network.drop_rate == system.network.blocks[1][0].aa.drop_prob == rate, "as it is saved"
    return [parameter.detach() for parameter in system.network.parameters()]


@pytest.mark.parametrize("labels", [0.0, 1.0])
def test_steps_drop_only_with_labels(labels: float, folders: Folders, trainer: Callable[..., Trainer]) -> None:
    losses = Losses(labels=labels)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "top-1 is not measured")
        kept, dropped = (weights(folders, trainer, losses, rate) for rate in (0.0, 0.6))
    same = [torch.equal(a, b) for a, b in zip(kept, dropped, strict=True)]
    assert not any(same) if labels else all(same)


def test_what_is_computed_anew_in_the_backward_pass_drops_nothing(
    folders: Folders, trainer: Callable[..., Trainer]
) -> None:
    """Else torch refuses it, as it has to be what the forward pass was."""
    kept, dropped = (weights(folders, trainer, Losses(), rate, recomputed=True) for rate in (0.0, 0.6))
    assert all(torch.equal(a, b) for a, b in zip(kept, dropped, strict=True))


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_benchmarks_drop_nothing(recomputed: bool, folders: Folders) -> None:
    drawn = torch.rand(16, 1, 28, 28)
    train = Set(drawn, torch.zeros(16, dtype=torch.int64), torch.randn(16, 10))
    found = []
    for rate in (0.0, 0.6):
        start = from_pretrained(Path(folders[1])).model
        start.drop_rate = rate
        start.blocks[1][0].aa = DropPath(rate)
        start.set_grad_checkpointing(recomputed)
        found.append(distil(start, train, Recipe("adamw", 1e-3, steps=2, batch=8), seed=0))
    assert all(torch.equal(a, b) for a, b in zip(found[0].parameters(), found[1].parameters(), strict=True))
    assert found[1].drop_rate == 0.6
