"""What the transfer benchmark is given: rates chosen on other data, backbones, and their sets."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import transfer
from benchmarks.few_shot import backbones
from benchmarks.few_shot import rates as rates_module
from benchmarks.few_shot.adapted import adapt_episode, network_digest
from benchmarks.few_shot.backbones import LITE0_LIMIT, Backbone, open_backbone
from benchmarks.few_shot.passes import last_layer
from benchmarks.few_shot.rates import RATES_KEY, RATES_MADE_OF, choose_rates, validation_pool
from benchmarks.few_shot.solving import Solving
from benchmarks.few_shot.tuning import Outcome, tune
from benchmarks.shared.common import Results
from hypercompress.data import Pool, sample_episode
from hypercompress.transfer import TransferNetwork, save_network
from tests.benchmarks.transfer.made import SHOTS


def test_the_rate_is_the_best_of_the_grid_on_other_data(
    backbone: Backbone, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[tuple[str, int | None]]()

    def validation(self: Backbone, text: str, limit: int | None = None) -> Pool:
        asked.append((text, limit))
        return pool

    monkeypatch.setattr(Backbone, "pool", validation)
    monkeypatch.setattr(rates_module, "RATES", (1e-4, 1e-3, 1e2))
    results = Results(tmp_path / "rates.csv", RATES_KEY, RATES_MADE_OF)
    last = last_layer(backbone.model, pool.images[:2])
    chosen = choose_rates(backbone, last, "norm", (1, 3), 4, results)
    assert {text for text, _ in asked} == {"other"}, "the validation set alone"
    assert len(results.rows) == 6
    for steps, rate in chosen.items():
        found = {float(r["rate"]): float(r["accuracy"]) for r in results.rows if r["steps"] == str(steps)}
        assert found[rate] == max(found.values())
    assert chosen[3] < 1e2, "a rate of 100 destroys the network"
    asked.clear()
    assert choose_rates(backbone, last, "norm", (1, 3), 4, results) == chosen
    assert asked == []


@pytest.mark.parametrize(("method", "twice"), [("adapt", True), ("adapt-plain", False), ("norm", False)])
def test_rates_are_of_their_transfer_network(
    backbone: Backbone, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, twice: bool
) -> None:
    asked, networks = list[str](), [str(tmp_path / name) for name in "ab"]

    def solve(self: Solving, *args: Any) -> list[dict[int, Outcome]]:
        asked.append(self.network)
        return [{10: Outcome(0.5, 1, 1, 1)} for _ in args[2]]

    monkeypatch.setattr(Solving, "solve", solve)
    monkeypatch.setattr(Backbone, "pool", lambda *_: pool)
    monkeypatch.setattr(rates_module, "RATES", (1e-3,))
    for seed, folder in enumerate(networks):
        torch.manual_seed(seed)
        save_network(TransferNetwork(), Path(folder))
    results = Results(tmp_path / "rates.csv", RATES_KEY, RATES_MADE_OF)
    for network in (*networks, networks[1]):
        choose_rates(backbone, "unused", method, (10,), 1, results, Solving(network))
    assert asked == networks[: 1 + twice]
    (row,) = results.rows
    assert row["weights"] == ("abc" + network_digest(method, networks[1]) if twice else "abc")


def test_backbones_in_the_assets_need_them() -> None:
    with pytest.raises(ValueError, match=r"received lite0 without --assets; .*pass it, or --backbones fashion"):
        open_backbone("lite0", None)
    with pytest.raises(ValueError, match=r"received lite0 and lite0-0.7 without --assets"):
        transfer.main(["--backbones", "fashion", "lite0", "lite0-0.7"])


def test_the_compressed_backbone_is_made_once_and_keeps_its_size(
    backbone: Backbone, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[Path]()

    def same(assets: Path) -> Backbone:
        calls.append(assets)
        return backbone

    monkeypatch.setattr(backbones, "lite0", same)
    monkeypatch.setattr(backbones, "photographs", lambda *_, **__: list(pool.images.split(30)))
    monkeypatch.setattr(backbones, "STUDENT", tmp_path / "student")
    student, again = (backbones.lite0_student(tmp_path) for _ in range(2))
    assert len(calls) == 1
    assert student.weights == again.weights
    sizes = [sum(p.numel() for p in model.parameters()) for model in (student.model, backbone.model)]
    assert 0.6 < sizes[0] / sizes[1] <= 0.7
    last = last_layer(student.model, pool.images[:2])
    episode = sample_episode(pool, 3, SHOTS, 5, torch.Generator().manual_seed(0))
    for method in ("norm", "lora", "full"):
        assert tune(student, last, episode, method, 1e-3, (2,), seed=0)[2].backward == 2
    assert adapt_episode(student, last, episode, "adapt-plain", 2, "auto", seed=0).backward == 2


def test_rates_have_classes_enough() -> None:
    """Of both validation sets, as they are and as many images as are read."""
    fashion = open_backbone("fashion", None)
    assert len(validation_pool(fashion).classes) > 100
    like_lite0 = replace(fashion, validation="fashion_mnist_mini", limit=LITE0_LIMIT)
    assert len(validation_pool(like_lite0).classes) == 10


def test_other_sets_take_the_place_of_the_backbones_own() -> None:
    found = open_backbone("fashion", None, data=["fashion_mnist_mini", "/somewhere/photos"])
    assert found.data == {"fashion_mnist_mini": "fashion_mnist_mini", "photos": "/somewhere/photos"}
    assert open_backbone("fashion", None).data == {"digits": "digits"}
    assert len(open_backbone("fashion", None).pool("fashion_mnist_mini", 50)) == 50
