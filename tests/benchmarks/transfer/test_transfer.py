"""The transfer benchmark: its rows, ours among them, and the whole program."""

import csv
import math
import statistics
from pathlib import Path

import pytest
import torch

from benchmarks import transfer
from benchmarks.few_shot import rates as rates_module
from benchmarks.few_shot.adapted import DEFAULT, adapt_episode, steps_of
from benchmarks.few_shot.backbones import Backbone
from benchmarks.few_shot.intervals import student_t
from benchmarks.few_shot.solving import Solving
from benchmarks.few_shot.transfer_table import estimate, figure, tables
from benchmarks.few_shot.trial import Trial, open_trials
from benchmarks.few_shot.tuning import accuracy
from benchmarks.shared.common import Results
from benchmarks.transfer import KEY, MADE_OF, run_frozen, run_steps
from hypercompress.data import Pool
from hypercompress.data.episodes import episode_at
from hypercompress.transfer import TransferNetwork, adapt, save_network
from tests.benchmarks.transfer.made import SHOTS


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
    run_steps(trial, "norm", SHOTS, 3, {1: 1e-3}, results, Solving(network))
    assert [r["weights"] == "abc" for r in results.rows] == [False, True, True], (
        "the network's weights count where it is used"
    )
    before = results.path.read_bytes()
    run_steps(trial, "adapt", SHOTS, 3, {0: 1e-3}, results, Solving(network))
    assert results.path.read_bytes() == before


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


def test_a_run_of_fewer_episodes_leaves_the_blocks_of_more(
    backbone: Backbone, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "open_backbone", lambda *_, **__: backbone)
    monkeypatch.setattr(transfer, "SHOTS", (1,))
    monkeypatch.setattr(transfer, "BLOCK", 4)
    monkeypatch.setattr(transfer, "BLOCK_TUNED", 2)
    monkeypatch.setattr(Backbone, "pool", lambda *_: pool)
    monkeypatch.setattr(rates_module, "RATES", (1e-3, 1e-2))
    words = ["--backbones", "fashion", "--shots", "1", "--steps", "0", "10", "--methods", "ridge", "probe"]

    def episodes(frozen: int, tuned: int, rates: int) -> tuple[list[tuple[str, str]], list[str]]:
        counts = ["--episodes", str(frozen), "--episodes-tuned", str(tuned), "--episodes-rates", str(rates)]
        transfer.main([*words, *counts, "--out", str(tmp_path)])
        with (tmp_path / "transfer.csv").open() as rows, (tmp_path / "transfer_rates.csv").open() as tried:
            found = [(r["method"], r["episodes"]) for r in csv.DictReader(rows)]
            return found, [r["episodes"] for r in csv.DictReader(tried)]

    first = episodes(6, 2, 2)
    assert first == ([("ridge", "4"), ("ridge", "2"), ("probe", "2")], ["2", "2"])
    assert episodes(3, 1, 1) == first
    tried = tmp_path / "transfer_rates.csv"
    tried.write_text("".join(tried.read_text().splitlines(keepends=True)[:-1]))  # as if it had been interrupted
    assert episodes(3, 1, 1) == first, "on as many as the other rates of the grid"
    assert episodes(7, 2, 2) == ([("ridge", "4"), ("probe", "2"), ("ridge", "3")], ["2", "2"]), "more are made"


@pytest.mark.parametrize("stack", [0, 64])
def test_the_default_finds_its_rate_itself(
    backbone: Backbone, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: int
) -> None:
    """Episode by episode whatever the stack; no grid is asked, and the cell of the rate says what was tried."""
    monkeypatch.setattr(transfer, "open_backbone", lambda *_, **__: backbone)
    monkeypatch.setattr(transfer, "SHOTS", (2,))
    monkeypatch.setattr(Backbone, "pool", lambda *_: pool)
    words = f"--backbones fashion --shots 2 --steps 10 --episodes-tuned 2 --stack {stack} --methods {DEFAULT}"
    transfer.main([*words.split(), "--out", str(tmp_path)])
    results = Results(tmp_path / "transfer.csv", KEY, MADE_OF)
    (row,) = results.rows
    assert (row["method"], row["steps"], row["rate"]) == (DEFAULT, "10", "0.0003/0.001/0.002")
    assert not (tmp_path / "transfer_rates.csv").exists()
    trial = next(open_trials(backbone, 2))
    right = []
    for index in range(2):
        episode = trial.episode(2, index)
        student = adapt(backbone.model, episode.support, episode.support_labels, steps=10, seed=index)
        with torch.no_grad():
            right.append(accuracy(student(episode.query), episode.query_labels))
    assert float(row["accuracy"]) == pytest.approx(statistics.fmean(right), rel=1e-5)
    before = results.path.read_bytes()
    transfer.main([*words.split(), "--out", str(tmp_path)])
    assert results.path.read_bytes() == before


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
