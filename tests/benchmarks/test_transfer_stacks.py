"""Stacked episodes of the transfer benchmark against episodes one by one, and processes that divide the work."""

import csv
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import adapted, stacked, transfer, tuning
from benchmarks import rates as rates_module
from benchmarks.adapted import adapt_episode, adapt_together
from benchmarks.backbones import Backbone
from benchmarks.common import COMMIT, Results, stamp
from benchmarks.passes import last_layer
from benchmarks.rates import RATES_KEY, RATES_MADE_OF, try_rates
from benchmarks.solving import Solving
from benchmarks.stacked import Products, Stack, learned, patches_product, tune_together
from benchmarks.transfer import KEY, MADE_OF, merge, run_frozen, run_steps
from benchmarks.trial import Trial
from benchmarks.tuning import TUNED, tune
from hypercompress.architecture import load_timm
from hypercompress.copying import copy_of
from hypercompress.data import Pool, sample_episode
from hypercompress.transfer import TransferNetwork, adapt, save_network
from hypercompress.transfer.backbone import Backbone as Net

SHOTS = 9  # 36 images: more than fit into a batch
WAYS = 4


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model, _ = load_timm(
        name,
        model_args={"in_chans": 1, "num_classes": 7},
        pretrained=False,
        pretrained_cfg={"input_size": [1, 32, 32], "mean": [0.3], "std": [0.3], "crop_pct": 1.0},
    )
    for parameter in model.parameters():  # zero-initialised norms would hide their branches
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model.double()


@pytest.fixture(scope="module", params=["test_resnet", "test_efficientnet"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return Backbone("tiny", made(request.param), "abc", {"made": "made"}, "other")


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Four classes of 20 images: a pattern of each class under noise."""
    generator = torch.Generator().manual_seed(0)
    patterns, labels = torch.randn(WAYS, 1, 32, 32, generator=generator), torch.arange(WAYS).repeat(20)
    images = patterns[labels] + 2 * torch.randn(len(labels), 1, 32, 32, generator=generator)
    return Pool("made", images.double(), labels)


@pytest.fixture
def trial(backbone: Backbone, pool: Pool) -> Trial:
    return Trial(backbone, "made", pool, last_layer(backbone.model, pool.images[:2]))


@pytest.fixture
def network(tmp_path: Path) -> str:
    """One that changes something: its last layers are not zero."""
    torch.manual_seed(0)
    made_network = TransferNetwork()
    for last in (made_network.changes, made_network.mix):
        nn.init.normal_(last.weight, std=0.05)
    save_network(made_network, tmp_path / "network")
    return str(tmp_path / "network")


def logits_seen(monkeypatch: pytest.MonkeyPatch, *modules: object) -> list[Tensor]:
    """All logits that these modules judge from now on."""
    seen = list[Tensor]()

    def accuracy(logits: Tensor, labels: Tensor) -> float:
        seen.append(logits.detach().clone())
        return float((logits.argmax(1) == labels).double().mean())

    for module in modules:
        monkeypatch.setattr(module, "accuracy", accuracy)
    return seen


@pytest.mark.parametrize("method", TUNED)
@pytest.mark.parametrize("shots", [2, SHOTS])
def test_a_stack_goes_where_its_episodes_go_alone(
    method: str, shots: int, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits after each number of steps; in float64, because AdamW makes a step of the smallest gradient."""
    episodes = [trial.episode(shots, index) for index in range(3)]
    steps, rate = (1, 3), 1e-3
    alone_seen = logits_seen(monkeypatch, tuning)
    alone = [tune(trial.backbone, trial.last, e, method, rate, steps, seed=i) for i, e in enumerate(episodes)]
    seen = logits_seen(monkeypatch, stacked)
    together = tune_together(trial.backbone, episodes, method, rate, steps, range(3))
    order = [alone_seen[2 * episode + step] for step in range(2) for episode in range(3)]
    for ours, theirs in zip(seen, order, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for one, other in zip(together, alone, strict=True):
        assert one.keys() == other.keys()
        for count in one:
            assert one[count].accuracy == other[count].accuracy
            assert (one[count].forward, one[count].backward) == (other[count].forward, other[count].backward)
            assert one[count].seconds is None


@pytest.mark.parametrize("method", ["adapt", "adapt-plain"])
@pytest.mark.parametrize("shots", [2, SHOTS * 2])  # 72 images: a whole batch of `adapt` and a part
def test_our_stack_goes_where_its_episodes_go_alone(  # noqa: PLR0913, PLR0917
    method: str, shots: int, backbone: Backbone, pool: Pool, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = last_layer(backbone.model, pool.images[:2])
    seen_alone = logits_seen(monkeypatch, adapted)
    episodes = [sample_episode(pool, WAYS, shots, 2, torch.Generator().manual_seed(i)) for i in range(3)]
    one = {s: [adapt_episode(backbone, last, e, method, s, network, i, 1e-2) for i, e in enumerate(episodes)] for s in (0, 3)}
    seen = logits_seen(monkeypatch, stacked)
    together = adapt_together(backbone, last, episodes, method, (0, 3), network, range(3), 1e-2)
    for ours, theirs in zip(seen, seen_alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for count, outcomes in one.items():
        found = [run[count] for run in together]
        assert [o.accuracy for o in found] == [o.accuracy for o in outcomes]
        assert [o.backward for o in found] == [o.backward for o in outcomes]
        assert [o.forward for o in found] == pytest.approx([o.forward for o in outcomes])
