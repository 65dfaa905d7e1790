"""The programs of EfficientNet-Lite0, on a small network and images of noise."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import hypercompress
from benchmarks import efficientnet_lite0, efficientnet_lite0_rates
from benchmarks import efficientnet_lite0_distilled as bench
from benchmarks.shared.common import Results, answered
from benchmarks.shared.distillation import Recipe, distil
from hypercompress.architecture import Architecture, load_timm
from hypercompress.specs import Budget


def small(_assets: Path, _network: str = "lite0") -> tuple[nn.Module, Architecture]:
    torch.manual_seed(0)
    return load_timm("test_efficientnet", pretrained=False, pretrained_cfg={"input_size": [3, 32, 32]})


def sharper(path: Path, _network: str = "lite0") -> tuple[nn.Module, Architecture]:
    """A random network that does not say nearly the same of every image."""
    model, architecture = small(path)
    with torch.no_grad():
        model.get_classifier().weight.mul_(1e4)  # type: ignore[operator]
    return model, architecture


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for place in range(count):
            path = tmp_path / "photos" / part / "all" / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    (tmp_path / "efficientnet_lite0.safetensors").write_bytes(b"weights")
    return tmp_path


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_norms_keep_their_moments_and_learn_all_the_same(frozen: bool) -> None:
    model, _ = small(Path())
    train = answered(model, torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert train.labels.tolist() == [-1] * 16
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)  # there is something to learn
    trained = distil(model, train, Recipe("adamw", 1e-2, steps=2, batch=8, frozen_norms=frozen), 0)
    kept = dict(model.named_buffers())
    same = [torch.equal(kept[name], b) for name, b in trained.named_buffers() if name.endswith("running_mean")]
    assert same
    assert all(same) if frozen else not any(same)
    assert not torch.equal(next(trained.parameters()), next(model.parameters()))


def test_starts_are_distilled_at_the_rate_of_their_pilot_and_rows_are_kept(
    assets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "open_teacher", small)
    monkeypatch.setattr(bench, "STEPS", 6)
    monkeypatch.setattr(bench, "RATES", (1e-2, 1.0))  # the second destroys the student
    words = ["--assets", str(assets), "--shares", "0.8", "0.01", "--out", str(assets / "out")]
    words += ["--only", "kfac", "svd", "prior", "hypernet", "--batch", "8", "--crops", "1"]
    with pytest.raises(LookupError, match=r"no rows of kfac \(images\) .* of 8 in .*; expected some; pass --pilot"):
        bench.main(words)
    bench.main([*words, "--pilot"])
    found = Results(assets / "out" / bench.PILOT, bench.PILOT_KEY, bench.MADE_OF)
    pairs = [("images", "kfac"), ("images", "hypernet"), ("none", "svd"), ("none", "prior"), ("none", "hypernet")]
    pairs.append(("noise", "kfac"))
    assert [(row["data"], row["start"], row["rate"]) for row in found.rows] == [
        (*pair, rate) for pair in pairs for rate in ("0.01", "1")
    ]
    assert {bench.best_rate(bench.Bench(assets, batch=8), found, *pair) for pair in pairs} == {1e-2}
    table = Results(assets / "out" / bench.TABLE, bench.KEY, bench.MADE_OF)
    assert [(row["data"], row["start"], row["share"]) for row in table.rows] == [(*pair, "0.8") for pair in pairs]
    said = capsys.readouterr().out
    assert all(f"\n{start}: received a params budget" in said for _, start in pairs)  # 1 % is out of reach: said
    for row in table.rows:
        assert "lr 0.01 " in row["recipe"]
        assert row["recipe"].endswith("6 x 8, frozen norms, 1 crops")
        assert float(row["kl"]) != float(row["kl_start"])
        assert row["top1"] == ""  # photographs of other classes than the network's
    before = table.path.read_bytes()
    bench.main([*words, "--only", "kfac", "--mixed"])
    bench.main(words)
    assert table.path.read_bytes() == before
    plain = next(row for row in table.rows if (row["data"], row["start"]) == ("images", "kfac"))
    mixed = Results(assets / "out" / bench.MIXED_TABLE, bench.KEY, bench.MADE_OF).rows[0]
    assert mixed["recipe"] == f"{plain['recipe']}, mixed"
    assert (mixed["kl_start"], mixed["start"]) == (plain["kl_start"], "kfac")
    assert mixed["kl"] != plain["kl"]


def test_the_pilot_of_other_weights_chooses_no_rate(assets: Path) -> None:
    made, found = bench.Bench(assets), Results(assets / bench.PILOT, bench.PILOT_KEY, bench.MADE_OF)
    for rate, weights, kl in ((1e-4, "other", 0.1), (3e-4, made.weights("kfac"), 0.3), (1e-3, "other", 0.2)):
        key = {"data": "images", "start": "kfac", "rate": rate, "recipe": made.recipe(rate, bench.STEPS // 3)}
        found.add({**key, "weights": weights, "kl": kl})
    assert bench.best_rate(made, found, "images", "kfac") == 3e-4
    (assets / "efficientnet_lite0.safetensors").write_bytes(b"others")
    with pytest.raises(
        LookupError, match=rf"no rows of kfac .* from the weights {made.weights('kfac')} .*pass --pilot"
    ):
        bench.best_rate(made, found, "images", "kfac")


@pytest.mark.parametrize(("strength", "steps", "same"), [(0.0, 6, True), (0.5, 6, False), (0.0, 3, False)])
def test_where_the_guard_took_kfac_the_row_is_its_row(tmp_path: Path, strength: float, steps: int, same: bool) -> None:
    table = Results(tmp_path / "rows.csv", bench.KEY, bench.MADE_OF)
    key = {"data": "images", "share": 0.8, "seed": 0}
    measured = {"kl_start": 1.0, "kl": 0.5, "seconds": 2.0}
    table.add({**key, "start": "kfac", "weights": "w", "recipe": f"{steps} x 8", **measured})
    student = hypercompress.compress(small(tmp_path)[0], Budget(params=0.9), generator="svd")
    student.report["generator"]["strength"] = strength
    row = bench._of_kfac(student, table, {**key, "start": "hypernet", "recipe": "6 x 8"})
    assert row == ({"kl_start": "1", "kl": "0.5", "seconds": "2"} if same else None)
    assert bench._of_kfac(student, table, {**key, "start": "whitened", "recipe": "6 x 8"}) is None


def test_rates_are_of_the_first_batch(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "open_teacher", sharper)
    words = ["--assets", str(assets), "--shares", "0.8", "--steps", "3", "--batch", "8", "--crops", "1"]
    words += ["--ways", "2 x step", "1 x step", "0.1 x root", "--out", str(assets / "out")]
    efficientnet_lite0_rates.main(words)
    path = assets / "out" / "efficientnet_lite0_rates.csv"
    twice, once, root = Results(path, efficientnet_lite0_rates.KEY).rows
    assert float(twice["rate"]) == pytest.approx(2 * float(once["rate"]), rel=1e-4)
    assert float(root["rate"]) == pytest.approx(0.1 * float(root["kl_batch"]) ** 0.5, rel=1e-4)
    assert twice["kl_start"] == once["kl_start"]
    assert len({row["kl"] for row in (twice, once, root)}) == 3
    before = path.read_bytes()
    efficientnet_lite0_rates.main(words)
    assert path.read_bytes() == before


def test_the_network_is_held_against_itself_on_changed_images(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite0, "open_teacher", sharper)
    sweep, results = efficientnet_lite0.make_sweep(assets), Results(assets / "itself.csv", ("change",))
    efficientnet_lite0.against_itself(sharper(assets)[0], sweep, results)
    (model, _), images = sharper(assets), sweep.test.images
    moved = torch.cat([images[..., :1].expand(-1, -1, -1, 4), images[..., :-4]], -1)
    assert [row["change"] for row in results.rows] == ["mirrored", "moved right by 4 pixels"]
    for row, changed in zip(results.rows, (images.flip(-1), moved), strict=True):
        with torch.inference_mode():
            right, other = model(images).double(), model(changed).double()
        kl = (right.softmax(1) * (right.log_softmax(1) - other.log_softmax(1))).sum(1).mean()
        assert kl > 0.1
        assert float(row["kl"]) == pytest.approx(float(kl), rel=1e-3)
        assert float(row["agreement"]) == pytest.approx(float((right.argmax(1) == other.argmax(1)).double().mean()))
        assert row["images"] == "4"
    before = results.path.read_bytes()
    efficientnet_lite0.against_itself(sharper(assets)[0], sweep, results)
    assert results.path.read_bytes() == before
