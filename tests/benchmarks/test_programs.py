"""The benchmark programs, on a network and data small enough for seconds."""

import copy
import csv
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

import hypercompress
from benchmarks import (
    few_images,
    generate_large,
    latency,
    menu,
    norm_modes,
    pilot,
    prediction,
    qkv,
    resnet18,
    speed,
    start_rates,
    starts,
)
from benchmarks.common import Results, Set, budget_of, fidelity, markdown, read_set, size_of, spread
from benchmarks.distillation import PILOT, PILOT_KEY, RECIPES, Recipe, best_recipe, distil, from_random
from benchmarks.pruning import prune
from benchmarks.sweep import DATA, KEY, Generators
from hypercompress.architecture import Architecture, load_timm
from hypercompress.benchmark import Settings
from hypercompress.compress import compress, finish
from hypercompress.fidelity import compare
from hypercompress.generator import Hypernetwork, save_hypernetwork
from hypercompress.inspection import inspect
from hypercompress.latency import _forms
from hypercompress.preparation import prepare
from hypercompress.specs import Budget, Unit
from hypercompress.student import Student
from hypercompress.timing import Timing
from hypercompress.unpacking import unpack

TINY = Recipe("adamw", 1e-3, steps=3, batch=16)


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, Architecture]:
    torch.manual_seed(0)
    model, architecture = load_timm(
        "test_resnet",
        model_args={"in_chans": 1, "num_classes": 10},
        pretrained=False,
        pretrained_cfg={"input_size": [1, 28, 28], "mean": [0.286], "std": [0.353], "crop_pct": 1.0},
    )
    return model, architecture


@pytest.fixture(scope="module")
def images(network: tuple[nn.Module, Architecture]) -> Set:
    return read_set(network[0], "fashion_mnist_mini", train=True, limit=96)


@pytest.fixture(scope="module")
def hypernet(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("hypernet")
    save_hypernetwork(Hypernetwork(), folder)
    return str(folder)


@pytest.fixture
def bench(network: tuple[nn.Module, Architecture], images: Set, hypernet: str) -> resnet18.Bench:
    model, architecture = network
    return resnet18.Bench(model, architecture, images, images, "abc", Generators(hypernet), 48, TINY, 12)


def test_a_set_holds_the_teachers_own_logits(network: tuple[nn.Module, Architecture], images: Set) -> None:
    with torch.no_grad():
        torch.testing.assert_close(images.logits, network[0](images.images))
    assert fidelity(network[0], network[0], images).kl == 0.0


def test_the_menu_is_compared_at_equal_cost(
    network: tuple[nn.Module, Architecture], images: Set, tmp_path: Path
) -> None:
    plans = [prepare(network[0], images.images.split(32), "kfac", seed=seed) for seed in range(2)]
    results = Results(tmp_path / "menu.csv", menu.KEY)
    menu.run("small", plans, images, "w", results)
    rows = results.rows
    assert {row["forms"] for row in rows} == set(menu.FORMS)
    assert all(row["both_sides"] == "0" for row in rows if row["forms"] == "one side")
    assert any(int(row["both_sides"]) > 0 for row in rows)
    for one in (row for row in rows if row["forms"] == "one side"):
        other = next(
            r for r in rows if r["forms"] != "one side" and all(r[k] == one[k] for k in ("unit", "share", "seed"))
        )
        assert float(other["predicted_kl"]) <= float(one["predicted_kl"]) * (1 + 1e-6)
        assert max(int(r[one["unit"]]) for r in (one, other)) <= float(one["share"]) * int(
            getattr(plans[0].spec, one["unit"])
        )
    before = (tmp_path / "menu.csv").read_text()
    menu.run("small", plans, images, "w", results)
    assert (tmp_path / "menu.csv").read_text() == before
    assert "one or both" in menu.table(results)


def test_the_latency_program_says_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No claim about speed: the cache is its own, and a row is what the two times say, or empty for a refusal."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    latency.main(["--models", "test_resnet", "--shares", "0.95", "0.01", "--out", str(tmp_path)])
    rows = Results(tmp_path / "latency.csv", ("model", "share", "batch_size"), ()).rows
    assert [row["share"] for row in rows] == ["0.95", "0.01"]
    assert rows[1]["achieved"] == ""
    for row in (row for row in rows if row["achieved"]):
        assert float(row["achieved"]) == pytest.approx(float(row["student_ms"]) / float(row["teacher_ms"]), rel=1e-4)
        assert float(row["achieved_torch"]) > 0


def test_a_fused_projection_is_compared_with_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are generated at equal budgets, one with a single layer and one with three, and the verdict counts pairs."""
    torch.manual_seed(0)
    model, architecture = load_timm(
        "test_vit",
        model_args={"in_chans": 1, "num_classes": 10, "img_size": 28, "patch_size": 7},
        pretrained=False,
        pretrained_cfg={"input_size": [1, 28, 28], "mean": [0.286], "std": [0.353], "crop_pct": 1.0},
    )
    Student(model, architecture).save_pretrained(tmp_path / "vit")
    fused = qkv.keep_fused(copy.deepcopy(model))
    assert unpack(fused) is fused
    assert unpack(model) is not model
    monkeypatch.setattr(qkv, "IMAGES", 96)
    monkeypatch.setattr(qkv, "SHARES", (0.01, 0.5))
    words = ["--data", "fashion_mnist_mini", "--teacher", str(tmp_path / "vit"), "--seeds", "1", "--out", str(tmp_path)]
    qkv.main(words)
    results = Results(tmp_path / "qkv.csv", qkv.KEY)
    assert len(results.rows) == 8
    assert len({row["predicted_kl"] for row in results.rows if row["share"] == "0.5"}) == 4  # one and three differ
    assert all(row["kl"] == "" for row in results.rows if row["share"] == "0.01")  # out of reach: said, not skipped
    assert "of 2 pairs" in qkv.verdict(results)
    before = (tmp_path / "qkv.csv").read_text()
    qkv.main(words)
    assert (tmp_path / "qkv.csv").read_text() == before


def test_few_images_are_compared_by_how_their_gradients_are_drawn(
    network: tuple[nn.Module, Architecture], tmp_path: Path
) -> None:
    Student(*network).save_pretrained(tmp_path / "digits" / "teacher")
    index = "name,data\nteacher,digits\n"
    (tmp_path / "digits" / "zoo.csv").write_text(index)
    words = ["--root", "unused", "--teacher", str(tmp_path / "digits" / "teacher"), "--images", "24"]
    few_images.main([*words, "--out", str(tmp_path)])
    results = Results(tmp_path / "few_images.csv", few_images.KEY)
    sizes = {(row["unit"], row["share"]) for row in results.rows}
    assert len(results.rows) == 3 * len(sizes) >= 3  # a size out of reach has no row
    kls = {row["probing"]: float(row["kl"]) for row in results.rows if row["unit"] == "macs"}
    assert set(kls) == {"one", "several", "several, softened"}
    assert len(set(kls.values())) > 1
    assert "24 images, one: 1.00 of the KL of one gradient (0 of" in few_images.verdict(results)
    before = (tmp_path / "few_images.csv").read_bytes()
    few_images.main([*words, "--out", str(tmp_path)])
    assert (tmp_path / "few_images.csv").read_bytes() == before


def test_modes_of_the_norms_stand_side_by_side(
    network: tuple[nn.Module, Architecture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starts, "TRAIN", 192)
    monkeypatch.setattr(starts, "TEST", 64)
    Student(*network).save_pretrained(tmp_path / "teacher")
    words = ["--root", "unused", "--teacher", str(tmp_path / "teacher"), "--shares", "0.01", "0.6", "--rates", "0.003"]
    monkeypatch.setattr(norm_modes, "data_of", lambda *_: "fashion_mnist_mini")
    norm_modes.main([*words, "--steps", "2", "--out", str(tmp_path)])
    results = Results(tmp_path / "norm_modes.csv", norm_modes.KEY)
    assert [(row["share"], row["norms"]) for row in results.rows] == [("0.6", "training"), ("0.6", "frozen")]
    first, second = results.rows  # 1 % is out of reach
    assert first["kl_start"] == second["kl_start"]
    assert first["kl"] != second["kl"]
    assert first["costs"] == second["costs"] != "1"
    table, sentence = norm_modes.verdict(results).split("\n\n")
    header, _, line = (row.split("|")[1:-1] for row in table.splitlines())
    told = dict(zip(map(str.strip, header), map(str.strip, line), strict=True))
    way = "frozen" if float(first["costs"]) > norm_modes.COSTS else "training"
    assert told["as chosen"] == told[way] != told["training" if way == "frozen" else "frozen"]
    gain = 100 * (float(second["top1"]) - float(first["top1"]))
    chosen = f"1 students are to be frozen; top-1 is {gain:+.2f}" if way == "frozen" else "0 students are to be frozen"
    assert sentence.startswith(f"Rate 0.003: {chosen}")
    before = (tmp_path / "norm_modes.csv").read_bytes()
    norm_modes.main([*words, "--steps", "2", "--out", str(tmp_path)])
    assert (tmp_path / "norm_modes.csv").read_bytes() == before


def test_rates_by_the_kl_stand_beside_a_fixed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "TRAIN", 192)
    monkeypatch.setattr(starts, "TEST", 64)
    monkeypatch.setattr(start_rates, "data_of", lambda *_: "fashion_mnist_mini")
    teacher = Path(hypercompress.__file__).parent / "pretrained" / "fashion_mnist_teacher"
    words = ["--root", "unused", "--teacher", str(teacher), "--shares", "0.001", "0.03", "--steps", "2"]
    words += ["--per-step", "2", "--per-root", "0.1", "--fixed", "0.003", "--out", str(tmp_path)]
    start_rates.main(words)
    rows = Results(tmp_path / "start_rates.csv", start_rates.KEY).rows  # 0.1 % is out of reach
    assert [(row["share"], row["way"]) for row in rows] == [
        ("0.03", way) for way in ("2 x step", "0.1 x root", "0.003")
    ]
    step, root, fixed = rows
    assert float(step["rate"]) == pytest.approx(2 * float(step["kl_first"]) / float(step["slope"]), rel=1e-4)
    assert float(root["rate"]) == pytest.approx(0.1 * math.sqrt(float(root["kl_first"])), rel=1e-4)
    assert (float(fixed["rate"]), step["kl_start"]) == (0.003, fixed["kl_start"])
    rows = [root, step, fixed]  # as the table has them
    table, top1 = start_rates.verdict(rows).split("\n\n")
    ratios = [float(row["kl"]) / float(row["kl_start"]) for row in rows]
    told = [cell.strip().split()[0] for cell in table.splitlines()[-1].split("|")[4:8]]
    assert told == [f"{ratio:.2f}" for ratio in (*ratios, min(ratios))]
    gains = [100 * (float(row["top1"]) - float(row["top1_start"])) for row in rows]
    assert top1 == (
        f"Top-1 by 2 steps, points: 0.1 x root {gains[0]:+.2f}, 2 x step {gains[1]:+.2f}, 0.003 {gains[2]:+.2f}"
    )
    before = (tmp_path / "start_rates.csv").read_bytes()
    start_rates.main(words)
    assert (tmp_path / "start_rates.csv").read_bytes() == before


def test_rates_are_told_of_students_that_have_all_of_their_number_of_steps() -> None:
    def row(weights: str, steps: int, way: str, kl: float) -> dict[str, str]:
        numbers = {"steps": steps, "kl_start": 0.1, "kl": kl, "top1_start": 0.5, "top1": 0.5 + kl, "share": 0.3}
        return {"teacher": "one", "weights": weights, "way": way, **{name: str(n) for name, n in numbers.items()}}

    found = [row("a", 40, "2 x step", 0.05), row("a", 40, "0.0005", 0.08), row("a", 100, "2 x step", 0.02)]
    found += [row("b", 40, "2 x step", 0.01)]  # another training of the same network, without a fixed rate
    table, top1 = start_rates.verdict(found).split("\n\n")
    last = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[3:7]] for line in table.splitlines()}
    assert last["40"] == ["1", "0.50 (0 worse)", "0.80 (0 worse)", "0.50 (0 worse)"]
    assert last["100"] == ["1", "0.20 (0 worse)", "-", "0.20 (0 worse)"]
    assert top1.splitlines()[0] == "Top-1 by 40 steps, points: 2 x step +5.00, 0.0005 +8.00"


def test_predictions_stand_beside_what_was_measured(
    network: tuple[nn.Module, Architecture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "SHARES", (0.01, 0.5, 0.7))
    monkeypatch.setattr(prediction, "IMAGES", 96)
    monkeypatch.setattr(prediction, "TEST", 64)
    model, architecture = copy.deepcopy(network[0]), network[1]
    for parameter in model.parameters():  # zero-initialised norms would hide their branches
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    Student(model, architecture).save_pretrained(tmp_path / "teacher")
    results = Results(tmp_path / "prediction.csv", ("teacher", "share"))
    prediction.run(tmp_path / "teacher", "fashion_mnist_mini", results)
    assert [row["share"] for row in results.rows] == ["0.5", "0.7"]  # 1 % is out of reach
    first, last = (
        {
            name + end: float(row[name + end])
            for name in ("predicted_kl", "kl_scale", "kl")
            for end in ("", "_generated")
        }
        for row in results.rows
    )
    assert first["kl_scale_generated"] == last["kl_scale_generated"]
    assert first["predicted_kl"] > last["predicted_kl"] > 0
    assert min(*first.values(), *last.values()) >= 0
    before = (tmp_path / "prediction.csv").read_bytes()
    prediction.run(tmp_path / "teacher", "fashion_mnist_mini", results)
    assert (tmp_path / "prediction.csv").read_bytes() == before
    prediction.figure(results, tmp_path / "prediction.png")
    assert (tmp_path / "prediction.png").stat().st_size > 1000


def test_a_prediction_counts_where_it_can_be_judged(tmp_path: Path) -> None:
    results = Results(tmp_path / "p.csv", ("teacher", "share"))
    for share, (predicted, kl) in enumerate([(0.01, 0.019), (0.01, 0.021), (0.01, 0.2), (1e-6, 1e-5), (0.03, 0.016)]):
        made = {"predicted_kl": predicted / 4, "kl_scale": 4.0, "kl": kl}
        made |= {f"{name}_generated": value for name, value in made.items()}
        results.add({"teacher": "t", "share": share, **made, "kl_scale_generated": 1.0, "weights": "w"})
    assert prediction.points(results) == [(0.01, 0.019), (0.01, 0.021), (0.03, 0.016)]
    assert prediction.points(results, scaled=False)[0] == (0.0025, 0.019)
    assert prediction.points(results, "_generated") == prediction.points(results, scaled=False)
    first, second, *_ = prediction.summary(results).splitlines()
    assert first.startswith("as given, scaled by one measured student: 2 of 3 within a factor of 2")
    assert second.startswith("as given, the additive model as it is: 0 of 3 within")


@pytest.mark.slow
def test_the_program_for_large_networks_measures_a_process(tmp_path: Path) -> None:
    generate_large.main(["--models", "test_vit", "--generator", "svd", "--out", str(tmp_path)])
    (row,) = Results(tmp_path / "generate_large.csv", ("model", "generator", "params"), ()).rows
    assert float(row["seconds"]) > 0
    assert float(row["megabytes_model"]) == pytest.approx(1.5, rel=0.2)


def test_fidelity_is_that_of_the_package(network: tuple[nn.Module, Architecture], images: Set) -> None:
    other = from_random(network[0], 3)
    ours, theirs = fidelity(network[0], other, images), compare(network[0], other, [(images.images, images.labels)])
    assert ours.top1_student == theirs.top1_student
    assert ours.agreement == theirs.agreement
    assert ours.kl == pytest.approx(theirs.kl, rel=1e-5)


def test_budget_of_the_factored_layers(network: tuple[nn.Module, Architecture], images: Set) -> None:
    spec = inspect(network[0], images.images[:2])
    dense = sum(layer.dense_params for layer in spec.candidates)
    assert budget_of(spec, 1.0).share == pytest.approx(1.0)
    assert budget_of(spec, 0.3).share * spec.params == pytest.approx(spec.params - 0.7 * dense)
    assert size_of(network[0], images.images[:2]) == (spec.params, spec.macs)


def test_distillation_lowers_the_loss_and_leaves_the_start_alone(
    network: tuple[nn.Module, Architecture], images: Set
) -> None:
    start, recipe = from_random(network[0], 1), Recipe("adamw", 1e-2, steps=30, batch=32)
    taught = replace(images, logits=3.0 * torch.randn(len(images), 10))
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    trained = distil(start, taught, recipe, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in start.state_dict().items())
    assert fidelity(network[0], trained, taught).kl < 0.9 * fidelity(network[0], start, taught).kl
    again = distil(start, taught, recipe, 0)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))


def test_the_learning_rate_rises_and_falls() -> None:
    factors = [Recipe("sgd", 1.0, steps=100).factor(step) for step in range(101)]
    assert max(factors) == 1.0
    assert factors[0] == 0.1
    assert factors[100] == pytest.approx(0)
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_pruning_keeps_no_fewer_parameters(network: tuple[nn.Module, Architecture], images: Set) -> None:
    whole = sum(p.numel() for p in network[0].parameters())
    sizes = [whole // 2, whole // 4]
    found = prune(network[0], images, sizes, steps=10)
    assert sum(p.numel() for p in network[0].parameters()) == whole
    assert set(found) == set(sizes)
    for size, model in found.items():
        assert size <= sum(p.numel() for p in model.parameters()) < whole
        assert model(images.images[:2]).shape == (2, 10)


def test_resnet18_makes_every_row_once(bench: resnet18.Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resnet18, "LARGER", (100_000,))
    names = [*resnet18.WITH_DATA, "prior", *resnet18.DISTILLED]
    resnet18.run(bench, tmp_path, 1, names, (0.5,), 0.5)
    files = ("resnet18.csv", "resnet18_distilled.csv", "resnet18.png")
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    with (tmp_path / files[0]).open() as file:
        rows = list(csv.DictReader(file))
    made = {(row["data"], row["generator"]) for row in rows}
    assert made == {(data, name) for data, names in DATA.items() for name in names}
    with (tmp_path / files[1]).open() as file:
        after = list(csv.DictReader(file))
    assert {row["start"] for row in after} == set(resnet18.DISTILLED)
    small = {row["start"]: int(row["params"]) for row in after if row["size"] == "0.5"}
    assert small["random"] == small["kfac"] <= small["torch-pruning"]
    before = [(tmp_path / name).read_bytes() for name in files[:2]]
    resnet18.run(bench, tmp_path, 1, names, (0.5,), 0.5)
    assert [(tmp_path / name).read_bytes() for name in files[:2]] == before


def test_a_row_holds_what_a_user_gets(bench: resnet18.Bench, images: Set) -> None:
    sweep, plan = bench.sweep((0.5,)), replace(bench.measure("images", 0), generator=bench.generators.load("kfac"))
    row, student = sweep.student(plan, 0.5), finish(plan, budget_of(plan.spec, 0.5), architecture=bench.architecture)
    assert row is not None
    assert row["norms"] == student.report["norms"]
    assert row["kl"] == pytest.approx(fidelity(bench.teacher, student, images).kl, rel=1e-5)


def test_the_pilot_keeps_images_out(bench: resnet18.Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resnet18, "LARGER", ())
    monkeypatch.setattr(pilot, "DISTILLED_SHARE", 0.5)
    monkeypatch.setattr(pilot, "kept_out", lambda train: (train.subset(slice(0, 64)), train.subset(slice(64, 96))))
    results = Results(tmp_path / PILOT, PILOT_KEY)
    pilot.run(bench, results, 1, [TINY])
    assert [row["start"] for row in results.rows] == list(resnet18.DISTILLED)


def test_each_start_gets_the_recipe_that_did_best_on_average(tmp_path: Path) -> None:
    results = Results(tmp_path / PILOT, PILOT_KEY)
    with pytest.raises(LookupError, match=r"run benchmarks\.pilot first"):
        best_recipe(results, "kfac")
    scores = {("kfac", 0): (0.5, 0.9, 0.1), ("kfac", 1): (0.8, 0.3, 0.1), ("random", 0): (0.1, 0.2, 0.3)}
    for (start, seed), numbers in scores.items():
        for recipe, top1 in zip(RECIPES, numbers, strict=True):
            results.add({"recipe": str(recipe), "start": start, "seed": seed, "weights": "w", "top1": top1})
    assert best_recipe(results, "kfac") == RECIPES[0]
    assert best_recipe(results, "random") == RECIPES[2]


def test_speed_makes_every_row_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "RUNTIMES", ("eager", "channels_last"))
    # A quarter of so small a transformer's products are attention, which no budget reaches.
    monkeypatch.setattr(speed, "BUDGETS", (Budget(params=0.5), Budget(macs=0.7)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Times are not the matter here: every form counts as faster.
    times = lambda layer, *_: [(r, q, layer.cost(Unit.MACS, r, q or None) / layer.dense_macs) for r, q in _forms(layer)]  # noqa: E731
    monkeypatch.setattr("hypercompress.latency._ratios", times)
    words = ["--models", "test_vit", "--batch-sizes", "2", "--seconds", "0.001", "--out", str(tmp_path)]
    speed.main(words)
    with (tmp_path / "speed.csv").open() as file:
        rows = list(csv.DictReader(file))
    about = {(row["unit"], row["forms"], row["runtime"]) for row in rows}
    assert about == set(product(("params", "macs"), speed.FORMS, speed.RUNTIMES))
    for row in rows:
        alone = row["forms"] == "faster" and row["runtime"] == "eager"
        assert (int(row["layers"]) >= int(row["slower_layers"])) if alone else not row["layers"]
        assert float(row["teacher_ms"]) / float(row["student_ms"]) == pytest.approx(float(row["speedup"]), rel=1e-4)
        assert float(row["speedup"]) / float(row["macs_ratio"]) == pytest.approx(float(row["efficiency"]), rel=1e-4)
        assert row["unit"] == "params" or float(row["macs_ratio"]) == pytest.approx(1 / 0.7, rel=0.05)
    before, out = (tmp_path / "speed.csv").read_bytes(), capsys.readouterr().out
    assert out.count("| test_vit |") == len(rows)
    assert f"of {sum(int(row['layers'] or 0) for row in rows)} factored layers slower than dense" in out
    speed.main(words)
    assert (tmp_path / "speed.csv").read_bytes() == before
    speed.main([*words, "--threads", "1", "--seconds", "0.002"])  # other settings: made again, in their place
    assert (tmp_path / "speed.csv").read_bytes() != before
    assert len(Results(tmp_path / "speed.csv", speed.KEY).rows) == len(rows)


def test_speed_in_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10)).eval()
    vars(model)["pretrained_cfg"] = {"input_size": (3, 8, 8)}
    pair = speed.Pair(model, compress(model, Budget(params=0.5), generator="svd"))
    for ours, session in zip((pair.teacher, pair.student), pair.sessions, strict=True):
        torch.testing.assert_close(session(torch.ones(2, 3, 8, 8)), ours(torch.ones(2, 3, 8, 8)).detach())
    monkeypatch.setattr(speed, "interleaved", lambda *_: [Timing((3.0,) * 5), Timing((1.0,) * 5)])
    found = pair.speed(4, "onnxruntime", Settings(threads=1)).as_json()
    assert (found["batch_size"], found["threads"], found["device"], found["speedup"]) == (4, 1, "cpu", 3)
    example = torch.randn(1, 3, 8, 8)
    assert found["macs_ratio"] == pytest.approx(size_of(pair.teacher, example)[1] / size_of(pair.student, example)[1])


def test_the_spectra_of_the_speed_benchmark_decay() -> None:
    plan = speed.planned("test_vit", torch.device("cpu"))
    exponents = set()
    whole = [layer for layer in plan.spec.candidates if ".qkv." not in layer.name]  # that one is taken apart afterwards
    for layer in whole:
        values = torch.linalg.svdvals(plan.sketches[layer.name].weight)
        exponent = float((values[0] / values[1]).log2())
        torch.testing.assert_close(values, values[0] * torch.arange(1.0, len(values) + 1) ** -exponent)
        assert speed.DECAY[0] <= exponent <= speed.DECAY[1]
        exponents.add(exponent)
    assert len(exponents) == len(whole) > 3


def test_kept_out_images_are_others() -> None:
    every = torch.arange(20.0)
    train, test = pilot.kept_out(Set(every, every, every), 5)
    assert sorted([*train.images.tolist(), *test.images.tolist()]) == every.tolist()
    assert len(test) == 5


def test_results_replace_rows_of_other_weights(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.csv", KEY)
    row = {"data": "images", "share": 0.05, "generator": "kfac", "seed": 0, "weights": "a", "top1": 0.5}
    results.add(row)
    again = Results(tmp_path / "r.csv", KEY)
    assert again.has(row)
    assert not again.has({**row, "weights": "b"})
    assert not again.has({**row, "share": 0.06})
    again.add({**row, "weights": "b", "top1": 0.25})
    assert Results(tmp_path / "r.csv", KEY).numbers("top1", generator="kfac") == [0.25]
    assert {"date", "commit", "hardware", "versions"} <= set(again.rows[0])


def test_tables() -> None:
    assert spread([0.5], 1, 100) == "50.0"
    assert spread([]) == "-"
    assert spread([0.5, 0.7], 1, 100) == "60.0 ± 14.1"
    assert markdown(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
