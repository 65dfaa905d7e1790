"""The transfer benchmark, on a network and images small enough for seconds."""

import csv
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import backbones, transfer
from benchmarks import rates as rates_module
from benchmarks.adapted import adapt_episode, steps_of
from benchmarks.backbones import LITE0_LIMIT, Backbone, features_of, frozen_features, open_backbone
from benchmarks.common import Results
from benchmarks.frozen import answer
from benchmarks.intervals import block, combine, paired, student_t
from benchmarks.lora import add_adapters
from benchmarks.passes import counting, last_layer
from benchmarks.rates import RATES_KEY, RATES_MADE_OF, choose_rates, validation_pool
from benchmarks.solving import Solving
from benchmarks.transfer import KEY, MADE_OF, blocks, run_frozen, run_steps
from benchmarks.transfer_table import estimate, figure, tables
from benchmarks.trial import Trial
from benchmarks.tuning import TUNED, accuracy, learning, tune
from hypercompress.architecture import load_timm
from hypercompress.compress import compress
from hypercompress.copying import copy_of
from hypercompress.data import Episode, Pool, sample_episode
from hypercompress.data.episodes import episode_at
from hypercompress.specs import Budget
from hypercompress.transfer import TransferNetwork, save_network

SHOTS, QUERIES = 3, 10


def made(name: str, **args: object) -> nn.Module:
    torch.manual_seed(0)
    model, _ = load_timm(
        name,
        model_args={"in_chans": 1, "num_classes": 7, **args},
        pretrained=False,
        pretrained_cfg={"input_size": [1, 32, 32], "mean": [0.3], "std": [0.3], "crop_pct": 1.0},
    )
    for parameter in model.parameters():  # zero-initialised norms would hide their branches
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone("tiny", made("test_resnet"), "abc", {"made": "made"}, "other")


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Six classes of 20 images: a pattern of each class under noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(6, 1, 32, 32, generator=generator)
    labels = torch.arange(6).repeat(20)
    return Pool("made", patterns[labels] + 2 * torch.randn(120, 1, 32, 32, generator=generator), labels)


@pytest.fixture
def trial(backbone: Backbone, pool: Pool) -> Trial:
    return Trial(backbone, "made", pool, last_layer(backbone.model, pool.images[:2]))


@pytest.fixture
def episode(pool: Pool) -> Episode:
    return sample_episode(pool, 4, SHOTS, 5, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_mambaout"])
def test_features_are_what_the_classifier_reads(name: str) -> None:
    model, images = made(name), torch.randn(3, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.get_classifier()(features_of(model, images)), model(images))  # type: ignore[operator]


def test_passes_are_counted_in_copies_and_not_when_paused(trial: Trial, pool: Pool) -> None:
    model, images = trial.backbone.model, pool.images[:5]
    with counting(model, trial.last) as passes:
        frozen_features(model, images)
        assert (passes.forward, passes.backward) == (5, 0)
        copied = copy_of(model).requires_grad_(False)
        next(copied.parameters()).requires_grad_(True)  # the first layer: gradients go the whole way
        features_of(copied, images).sum().backward()
        assert (passes.forward, passes.backward) == (10, 5)
        with passes.paused():
            features_of(copied, images).sum().backward()
        features_of(copied, images[:2])
        assert (passes.forward, passes.backward) == (12, 5)
    frozen_features(model, images)
    assert passes.forward == 12, "nothing is counted after the block"


def test_the_last_layer_of_a_student_is_found(backbone: Backbone, pool: Pool) -> None:
    assert last_layer(backbone.model, pool.images[:2]) != "fc"
    student = compress(backbone.model, Budget(params=0.8), generator="svd")
    with counting(student, last_layer(student, pool.images[:2])) as passes:
        frozen_features(student, pool.images[:7])
    assert passes.forward == 7


def test_the_nearest_class_mean_wins(pool: Pool) -> None:
    support, labels, query = torch.randn(12, 5), torch.arange(4).repeat(3), torch.randn(9, 5)
    means = torch.stack([support[labels == k].mean(0) for k in range(4)])
    expected = torch.cdist(query, means).argmin(1)
    assert torch.equal(answer("ncm", support, labels, query, 4).argmax(1), expected)


def test_adapters_change_nothing_at_first_and_are_a_low_rank_convolution_then(pool: Pool) -> None:
    model = made("test_resnet").requires_grad_(False)
    before = model(pool.images[:4])
    conv = next(m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
    weight, head = conv.weight.detach().clone(), model.get_classifier()  # type: ignore[operator]
    added = add_adapters(model, head, 2, seed=0)
    assert all(p.requires_grad for p in added)
    torch.testing.assert_close(model(pool.images[:4]), before, rtol=0, atol=0)
    assert not hasattr(head, "parametrizations")
    adapter = conv.parametrizations["weight"][0]  # type: ignore[union-attr, index]
    adapter.b.data.normal_()
    x = torch.randn(2, conv.in_channels, 8, 8)
    inner = F.conv2d(x, adapter.a.view(2, *weight.shape[1:]), None, conv.stride, conv.padding)
    expected = F.conv2d(x, weight, conv.bias, conv.stride, conv.padding) + F.conv2d(inner, adapter.b[:, :, None, None])
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-4)


def test_each_method_trains_what_it_says(backbone: Backbone) -> None:
    model = copy_of(backbone.model).requires_grad_(False)
    head = {id(p) for p in model.get_classifier().parameters()}  # type: ignore[operator]
    norms = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    assert learning(model, "probe", 0) == []
    assert {id(p) for p in learning(model, "norm", 0)} == norms
    assert {id(p) for p in learning(model, "full", 0)} == {id(p) for p in model.parameters()} - head
    inside = {id(p) for p in model.parameters()}
    assert not {id(p) for p in learning(model, "lora", 0)} & inside


@pytest.mark.parametrize("method", TUNED)
def test_a_tuned_episode_is_repeatable_costs_what_it_does_and_leaves_the_backbone(
    method: str, trial: Trial, episode: Episode
) -> None:
    before = {name: value.clone() for name, value in trial.backbone.model.state_dict().items()}
    run = [tune(trial.backbone, trial.last, episode, method, 1e-3, (1, 4), seed=3) for _ in range(2)]
    assert {s: o.accuracy for s, o in run[0].items()} == {s: o.accuracy for s, o in run[1].items()}
    each = 0 if method == "probe" else 64 // 12 if method.endswith("-views") else 1  # of the 12 images in every step
    for steps in (1, 4):  # the first pass is for the ridge head
        assert (run[0][steps].forward, run[0][steps].backward) == (1 + steps * each, steps * each)
    assert 0 < run[0][1].seconds < run[0][4].seconds
    after = trial.backbone.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_tuning_fits_the_support_set(backbone: Backbone, episode: Episode) -> None:
    """On the support images themselves, where the ridge head alone does not answer all right."""
    same = Episode(episode.support, episode.support_labels, episode.support, episode.support_labels, episode.classes)
    last, features = last_layer(backbone.model, episode.support[:2]), frozen_features(backbone.model, episode.support)
    ridge = accuracy(answer("ridge", features, same.query_labels, features, 4), same.query_labels)
    assert ridge < 1
    for method, rate in {"probe": 1e-2, "norm": 1e-2, "lora": 1e-2, "full": 1e-3}.items():
        assert tune(backbone, last, same, method, rate, (30,), seed=0)[30].accuracy > ridge, method


def test_at_a_vanishing_rate_every_tuned_method_is_ridge(trial: Trial) -> None:
    places = trial.places(SHOTS, 0)
    episode = episode_at(trial.pool, places)
    for method in TUNED:
        found = tune(trial.backbone, trial.last, episode, method, 1e-12, (2,), seed=0)[2]
        assert found.accuracy == trial.frozen("ridge", places), method


def test_what_is_cached_is_what_is_measured(trial: Trial) -> None:
    for method in ("ncm", "ridge"):
        for index in range(3):
            cost = trial.measured(method, trial.places(SHOTS, index))
            assert cost.accuracy == trial.frozen(method, trial.places(SHOTS, index))
            assert (cost.forward, cost.backward) == (1, 0)


def test_ours_without_network_and_steps_is_ridge(trial: Trial) -> None:
    for index in range(3):
        episode = episode_at(trial.pool, trial.places(SHOTS, index))
        found = adapt_episode(trial.backbone, trial.last, episode, "adapt-plain", 0, "auto", seed=0)
        assert found.accuracy == trial.frozen("ridge", trial.places(SHOTS, index))
        assert found.backward == 0


def test_ours_is_counted_and_leaves_the_backbone(trial: Trial, tmp_path: Path) -> None:
    """One pass for the features and one over the adapted network; an image more, to know how to build it again."""
    save_network(TransferNetwork(), tmp_path / "network")
    network, images = str(tmp_path / "network"), trial.ways * SHOTS
    before = {name: value.clone() for name, value in trial.backbone.model.state_dict().items()}
    episode = episode_at(trial.pool, trial.places(SHOTS, 0))
    found = {s: adapt_episode(trial.backbone, trial.last, episode, "adapt", s, network, seed=0) for s in (0, 3)}
    assert found[0].accuracy == trial.frozen("ridge", trial.places(SHOTS, 0)), "an untrained network changes nothing"
    assert found[0].forward == 2 + 1 / images
    assert found[0].backward == 0
    assert found[3].forward - found[0].forward == pytest.approx(3)
    assert found[3].backward == 3
    after = trial.backbone.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_ours_has_rows_where_it_is_something_of_its_own(trial: Trial, tmp_path: Path) -> None:
    save_network(TransferNetwork(), tmp_path / "network")
    network = str(tmp_path / "network")
    assert steps_of("adapt-plain", network, [0, 10]) == [10]
    assert steps_of("adapt", network, [0, 10]) == [0, 10]
    assert steps_of("adapt-all", network, [0, 10]) == [10]
    assert steps_of("adapt", str(tmp_path / "nothing"), [0, 10]) == []
    results = Results(tmp_path / "transfer.csv", KEY, MADE_OF)
    run_steps(trial, "adapt", SHOTS, 3, {0: 1e-3}, results, Solving(network))
    run_steps(trial, "adapt-plain", SHOTS, 3, {1: 1e-3}, results, Solving(network))
    assert [r["weights"] == "abc" for r in results.rows] == [False, True], (
        "the network's weights count where it is used"
    )
    before = results.path.read_bytes()
    run_steps(trial, "adapt", SHOTS, 3, {0: 1e-3}, results, Solving(network))
    assert results.path.read_bytes() == before


def test_a_t_interval_covers_as_a_table_says() -> None:
    table = {1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 9: 2.262, 29: 2.045, 599: 1.964}
    for freedom, quantile in table.items():
        assert student_t(freedom) == pytest.approx(quantile, rel=0.01)


def test_blocks_add_up_to_their_episodes() -> None:
    values = torch.rand(23, generator=torch.Generator().manual_seed(0)).double().tolist()
    rows = []
    for numbers in blocks(23, 10):
        mean, deviation = block([values[i] for i in numbers])
        rows.append({"episodes": str(len(numbers)), "accuracy": repr(mean), "accuracy_deviation": repr(deviation)})
    whole = combine(rows, "accuracy")
    assert [row["episodes"] for row in rows] == ["10", "10", "3"]
    assert whole.count == 23
    assert whole.mean == pytest.approx(statistics.fmean(values))
    assert whole.interval == pytest.approx(student_t(22) * statistics.stdev(values) / math.sqrt(23))
    assert combine(rows[:1], "accuracy").interval > 0
    assert combine([{"episodes": "1", "accuracy": "1", "accuracy_deviation": "0"}], "accuracy").interval == math.inf


def test_rows_are_paired_with_ridge_and_are_not_made_again(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "BLOCK_TUNED", 2)
    results = Results(tmp_path / "transfer.csv", KEY, MADE_OF)
    run_frozen(trial, "ncm", SHOTS, 3, results)
    run_frozen(trial, "ridge", SHOTS, 3, results)
    run_steps(trial, "norm", SHOTS, 3, {1: 1e-3, 3: 1e-2}, results)
    assert [(r["method"], r["steps"], r["first"], r["episodes"]) for r in results.rows] == [
        *(("ncm", "0", "0", "3"), ("ridge", "0", "0", "3")),
        *(("norm", "1", "0", "2"), ("norm", "3", "0", "2"), ("norm", "1", "2", "1"), ("norm", "3", "2", "1")),
    ]
    ridge = [trial.frozen("ridge", trial.places(SHOTS, index)) for index in range(3)]
    ncm = [trial.frozen("ncm", trial.places(SHOTS, index)) for index in range(3)]
    known = estimate(results, "gain", method="ncm")
    assert known is not None
    assert known.mean == pytest.approx(statistics.fmean(ncm) - statistics.fmean(ridge), abs=1e-5)
    paired = statistics.stdev(a - b for a, b in zip(ncm, ridge, strict=True))
    assert known.interval == pytest.approx(student_t(2) * paired / math.sqrt(3), abs=1e-5)
    before = results.path.read_bytes()
    run_frozen(trial, "ncm", SHOTS, 3, results)
    run_steps(trial, "norm", SHOTS, 3, {1: 1e-3, 3: 1e-2}, results)
    assert results.path.read_bytes() == before
    run_steps(trial, "norm", SHOTS, 3, {1: 3e-3}, results)
    assert [r["rate"] for r in results.rows if r["steps"] == "1"] == ["0.003"] * 2, "another rate replaces the row"


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


def test_the_whole_program_writes_table_and_plot(
    backbone: Backbone, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transfer, "open_backbone", lambda *_, **__: backbone)
    monkeypatch.setattr(transfer, "SHOTS", (1, 2))
    monkeypatch.setattr(Backbone, "pool", lambda *_: pool)
    monkeypatch.setattr(rates_module, "RATES", (1e-3,))
    words = "--backbones fashion --shots 1 2 --steps 0 10 --episodes 4 --episodes-tuned 2 --episodes-rates 1"
    transfer.main([*words.split(), "--methods", "ncm", "ridge", "probe", "norm", "--out", str(tmp_path)])
    with (tmp_path / "transfer.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(r["method"], r["shots"], r["steps"]) for r in rows} == {
        *((method, shots, "0") for method in ("ncm", "ridge") for shots in "12"),
        *((method, shots, "10") for method in ("probe", "norm") for shots in "12"),
    }
    assert all(row["commit"] and row["date"] for row in rows)
    shown = capsys.readouterr().out
    assert "| norm | 10 | 11 + 10 |" in shown
    assert "| ridge | 0 | 1 + 0 |" in shown
    assert (tmp_path / "transfer.png").stat().st_size > 1000
    results = Results(tmp_path / "transfer.csv", KEY, MADE_OF)
    figure(results, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "transfer.png").read_bytes()
    assert tables(results) in shown


def test_differences_are_of_the_blocks_that_both_have() -> None:
    def rows(*shares: float, start: int = 0) -> list[dict[str, str]]:
        numbers = enumerate(shares, start)
        return [{"first": str(10 * place), "episodes": "10", "accuracy": str(share)} for place, share in numbers]

    ours = rows(0.5, 0.6, 0.7, 0.8, 0.9, 0.4)
    found = paired(ours, rows(0.4, 0.4, 0.4, 0.4, 0.4), "accuracy")
    assert found is not None
    assert (found.count, found.mean) == (50, pytest.approx(0.3))
    assert found.interval == pytest.approx(
        2.776 * statistics.stdev((0.1, 0.2, 0.3, 0.4, 0.5)) / 5**0.5, rel=1e-2
    )  # t of 4
    assert paired(ours, rows(0.1, 0.1, 0.1, 0.1, 0.1, start=3), "accuracy") is None  # three blocks in common
    same = paired(ours, ours, "accuracy")
    assert same is not None
    assert (same.mean, same.interval) == (0, 0)


def test_ours_stands_beside_the_others_on_the_same_episodes(tmp_path: Path) -> None:
    results = Results(tmp_path / "transfer.csv", KEY, MADE_OF)
    for method, share in (("adapt-all-views", 0.75), ("lora-views", 0.5)):
        for first in range(0, 50, 10):
            row = {"backbone": "fashion", "data": "digits", "method": method, "shots": 1, "steps": 50, "first": first}
            right = {"accuracy": share + first / 1000, "accuracy_deviation": 0.1, "gain": 0.1, "gain_deviation": 0.1}
            cost = {"forward": 2, "backward": 1, "seconds": None}
            made = dict.fromkeys(MADE_OF, 1) | {"episodes": 10}
            results.add({**row, **made, **right, **cost})
    shown = tables(results).split("adapt-all-views minus others on the same episodes, points")
    assert len(shown) == 2
    assert "| lora-views | 50 | +25.0 ± 0.0; 50 |" in shown[1]
    assert "adapt-all-views" not in shown[1]


def test_ridge_costs_one_pass_and_accuracy_is_a_share() -> None:
    assert accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 0.75


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
