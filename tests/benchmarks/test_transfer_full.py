"""Fine-tuning from three starts, on a network and images small enough for seconds."""

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import transfer_full
from benchmarks.few_shot import adapted
from benchmarks.few_shot.backbones import Backbone
from benchmarks.shared.common import Results, digest
from benchmarks.transfer_full import CSV, KEY, MADE_OF, STARTS, Schedule, curve, reached, run, start_of, table, top1
from hypercompress.architecture import load_timm
from hypercompress.data import Pool
from hypercompress.transfer import TransferNetwork, save_network


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    found, _ = load_timm(
        "test_resnet",
        model_args={"in_chans": 1, "num_classes": 7},
        pretrained=False,
        pretrained_cfg={"input_size": [1, 16, 16], "mean": [0.3], "std": [0.3], "crop_pct": 1.0},
    )
    return found


def pool(seed: int, count: int) -> Pool:
    """Three classes: a pattern of each under noise."""
    patterns = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3).repeat(count)
    noise = torch.randn(len(labels), 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Pool("made", patterns[labels] + 2 * noise, labels)


def test_the_target_is_reached_at_the_first_look_that_meets_it() -> None:
    assert reached([0.2, 0.5, 0.4, 0.9], 0.5, 5) == 5
    assert reached([0.2, 0.5], 0.2, 5) == 0
    assert reached([0.2, 0.5], 0.6, 5) is None


def test_starts_share_the_backbone_and_differ_in_the_head(model: nn.Module) -> None:
    train = pool(1, 10)
    ridge, random, again, other = (
        start_of(name, model, train, seed) for name, seed in (("ridge", 0), ("random", 0), ("random", 0), ("random", 1))
    )
    weights = [dict(start.model.named_parameters()) for start in (ridge, random, again, other)]
    for name, value in weights[0].items():
        same = [torch.equal(value, others[name]) for others in weights[1:]]
        assert same == ([False] * 3 if name.startswith("fc") else [True] * 3), name
    assert torch.equal(weights[1]["fc.weight"], weights[2]["fc.weight"])
    assert not torch.equal(weights[1]["fc.weight"], weights[3]["fc.weight"])
    assert top1(ridge, train) > top1(random, train)


def test_tuning_learns_and_leaves_its_start(model: nn.Module) -> None:
    train, start = pool(1, 20), start_of("random", model, pool(1, 20), 0)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    found = curve(start, train, train, 1e-3, Schedule(20, 10), seed=0)
    assert len(found) == 3
    assert found[-1] > max(0.5, found[0])
    assert found[0] == top1(start, train)
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    assert found == curve(start, train, train, 1e-3, Schedule(20, 10), seed=0)


def test_rows_have_one_target_for_all_starts_and_are_not_made_again(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer_full, "RATES", (1e-3,))
    monkeypatch.setattr(transfer_full, "_pool", lambda *_, train: pool(int(train), 12))
    backbone = Backbone("tiny", model, "abc", {"made": "made"}, "other")
    results = Results(tmp_path / "full.csv", KEY, MADE_OF)
    run(backbone, Schedule(4, 2), 2, results)
    assert [(row["start"], row["seed"]) for row in results.rows] == [
        (name, str(seed)) for seed in (0, 1) for name in STARTS
    ]
    for seed in "01":
        rows = {row["start"]: row for row in results.rows if row["seed"] == seed}
        assert {row["target"] for row in rows.values()} == {f"{0.99 * float(rows['ridge']['final']):.6g}"}
        assert rows["ridge"]["reached"]
    before = results.path.read_bytes()
    run(backbone, Schedule(4, 2), 2, results)
    assert results.path.read_bytes() == before
    shown = table(results)
    assert all(f"| tiny | made | {name} | 0.001 |" in shown for name in STARTS)


def test_rows_of_ours_are_made_again_for_another_network(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer_full, "RATES", (1e-3,))
    monkeypatch.setattr(transfer_full, "_pool", lambda *_, train: pool(int(train), 12))
    backbone, results = Backbone("tiny", model, "abc", {"made": "made"}, "other"), Results(tmp_path / CSV, KEY, MADE_OF)
    made: list[dict[str, str]] = []
    for seed in range(2):
        torch.manual_seed(seed)
        save_network(TransferNetwork(), tmp_path / str(seed))
        monkeypatch.setattr(adapted, "RELEASED", tmp_path / str(seed))
        run(backbone, Schedule(1, 1), 1, results)
        made.append({row["start"]: row["weights"] for row in results.rows})
    assert {weights["ridge"] for weights in made} == {weights["random"] for weights in made} == {"abc"}
    assert [weights["adapt"] for weights in made] == [f"abc+{digest(tmp_path / name)}" for name in "01"]
    assert made[0]["adapt"] != made[1]["adapt"]


def test_looks_divide_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        transfer_full.main(["--steps", "7", "--every", "2"])
    assert "received --steps 7 and --every 2; expected a number of steps that --every" in capsys.readouterr().err
