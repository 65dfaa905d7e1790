"""The command line on good input: what it writes, what it prints, and that its numbers are those of the library."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import hypercompress
from hypercompress.allocation import ParetoPoint
from hypercompress.cli import generate as generate_module
from hypercompress.cli import main
from hypercompress.cli.pareto import best_within, thinned
from hypercompress.cli.terminal import Terminal, finite
from hypercompress.data import Preprocess, loader, open_data
from hypercompress.generator import HypernetConfig, Hypernetwork, registry, save_hypernetwork
from hypercompress.latency import _forms
from hypercompress.specs import Unit

SIZE = ("--input-size", "1", "32", "32", "--mean", "0.286", "--std", "0.353")
DATA = ("--data", "fashion_mnist_mini")
ARGS = '{"num_classes": 10, "in_chans": 1}'
CALIBRATE = (*SIZE, *DATA, "--images", "96")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The networks are tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: exit code, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small network whose every branch is alive (timm starts some at zero)."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for _ in range(30):  # moments that fit the weights
            logits = model.train()(torch.randn(16, 1, 32, 32))
        model.fc.weight.mul_(2 / logits.std())
    path = tmp_path_factory.mktemp("teacher") / "weights.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def teacher(weights: Path) -> tuple[object, ...]:
    """The words that name the teacher."""
    return ("test_resnet", "--checkpoint", weights, "--model-args", ARGS)


@pytest.fixture(scope="module")
def student(teacher: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("students") / "student"
    name, *rest = teacher
    words = ["generate", name, folder, *rest, "--params", 0.3, "--generator", "kfac", *CALIBRATE]
    assert main([str(word) for word in words]) == 0
    return folder


@pytest.fixture(scope="module")
def hypernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hypernetwork as it is before training."""
    folder = tmp_path_factory.mktemp("generator") / "mine"
    save_hypernetwork(Hypernetwork(HypernetConfig()), folder)
    return folder


def write_images(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for index in range(count):
        Image.fromarray(generator.integers(0, 255, (20, 24), dtype=np.uint8)).save(folder / f"{index}.png")


def test_generate_writes_the_student_of_the_contract(student: Path, weights: Path) -> None:
    assert {path.name for path in student.iterdir()} == {"README.md", "config.json", "model.safetensors", "report.json"}
    report = json.loads((student / "report.json").read_text())
    assert {"teacher", "student", "budget", "predicted_kl", "fidelity", "generator", "seconds", "layers"} <= set(report)
    loaded = hypercompress.from_pretrained(student)
    dense = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    count, whole = (sum(p.numel() for p in model.parameters()) for model in (loaded, dense))
    assert count <= 0.3 * whole
    assert report["student"]["params"] == count
    assert report["budget"] == {"unit": "params", "target": 0.3, "achieved": pytest.approx(count / whole)}
    assert report["fidelity"]["images"] > 0
    assert report["predicted_kl"] > 0


def test_the_student_knows_its_preprocessing(student: Path) -> None:
    cfg = hypercompress.from_pretrained(student).pretrained_cfg
    assert (tuple(cfg["input_size"]), tuple(cfg["mean"]), tuple(cfg["std"])) == ((1, 32, 32), (0.286,), (0.353,))


def test_generate_searches_for_ranks(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    words = ("generate", name, tmp_path / "s", *rest, "--params", 0.3, *CALIBRATE, "--search", 0.5, "--json")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["search"]["seconds"] == 0.5
    assert report["search"]["tries"] >= 1
    assert report["budget"]["achieved"] <= 0.3
    code, out, err = run("generate", name, tmp_path / "t", *rest, "--latency", 0.9, "--search", 5, "--generator", "svd")
    assert (code, out) == (2, "")
    assert err == (
        "error: received --search with no --data, --latency, --generator svd; expected seconds above 0, --data to "
        "judge by, --params or --macs, and --generator auto, hypernet or kfac; change that or drop --search\n"
    )


def test_generate_makes_its_own_images(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    """The whole pipeline runs on them: statistics, guard, measured fidelity, and the report says what they are."""
    name, *rest = teacher
    words = ("generate", name, tmp_path / "s", *rest, "--params", 0.3, *SIZE)
    code, out, err = run(*words, "--data", "synthetic:48")
    assert (code, err) == (0, "")
    assert re.search(r"calibration: 48 synthetic images \(matched to the moments of \d+ BatchNorms\)", out)
    assert "held-out synthetic images" in out
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert report["calibration"] == "synthetic:48"
    assert report["fidelity"]["images"] > 0
    assert "calibrated on synthetic:48" in (tmp_path / "s" / "README.md").read_text()
    code, out, _ = run("report", tmp_path / "s")
    assert "calibrated on synthetic:48" in out
    code, out, _ = run(*words[:2], tmp_path / "blind", *words[3:], "--json")
    assert json.loads(out)["calibration"] is None


def test_generate_without_data_says_how_to_do_better(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    code, out, _ = run("generate", name, tmp_path / "s", *rest, "--params", 0.3)
    assert code == 0
    assert "--data synthetic" in out


@pytest.mark.parametrize("data", ["synthetic:", "synthetic:5", "synthetic:many", "synthetic:-1"])
def test_generate_refuses_a_count_of_images_that_is_none(run: Run, tmp_path: Path, data: str) -> None:
    code, out, err = run("generate", "test_resnet", tmp_path / "s", "--params", 0.3, "--data", data)
    assert (code, out) == (2, "")
    assert err == (
        f"error: received data {data!r}; expected synthetic or synthetic:COUNT with at least 6 images; pass "
        "synthetic:256\n"
    )


def test_only_generate_takes_images_that_are_made(run: Run, student: Path) -> None:
    code, _, err = run("evaluate", student, "--data", "synthetic:64")
    assert code == 2
    assert "expected real images: synthetic ones only calibrate generate; pass a folder" in err


def test_generate_prints_each_derived_default(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    code, out, err = run("generate", name, tmp_path / "s", *rest, "--macs", 0.8, "--generator", "whitened", *CALIBRATE)
    assert (code, err) == (0, "")
    assert "preprocessing: 1 x 32 x 32, mean 0.286, std 0.353" in out
    assert re.search(r"^device: (cpu|cuda) \(chosen\)$", out, flags=re.MULTILINE)
    assert "calibration: 96 of 4096 images of fashion_mnist_mini, in batches of 6" in out
    assert "generator: whitened" in out
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert report["student"]["macs"] <= 0.8 * report["teacher"]["macs"]
    assert f"{report['student']['macs']:,}" in out


def test_fast_times_the_student_and_says_so(
    run: Run, teacher: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are made up: every form is as much faster as it has fewer multiply-accumulates."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "hypercompress.latency._ratios",
        lambda layer, *_: [(r, q, layer.cost(Unit.MACS, r, q or None) / layer.dense_macs) for r, q in _forms(layer)],
    )
    name, *rest = teacher
    code, out, _ = run("generate", name, tmp_path / "s", *rest, "--macs", 0.8, "--fast", "--generator", "svd")
    assert code == 0
    assert re.search(r"^measured time: .* ms -> .* ms at batch size 1$", out, flags=re.MULTILINE)
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert report["budget"]["unit"] == "macs"
    assert report["budget"]["achieved"] <= 0.8
    assert report["latency"]["batch_size"] == 1


def test_the_bar_names_the_layer_at_hand() -> None:
    with Terminal(quiet=True) as terminal:
        terminal.phase("generate", 2)
        terminal.progress("factorize", 1, "layer1.conv1")
        (task,) = terminal.bar.tasks
        assert (task.description, task.completed, task.fields["at"]) == ("generate", 1, "layer1.conv1")


def test_generate_json_is_the_report(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    code, out, err = run("generate", name, tmp_path / "s", *rest, "--params", 0.4, "--generator", "svd", "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert json.loads(out) == json.loads((tmp_path / "s" / "report.json").read_text())


def test_generate_is_deterministic_and_leaves_the_checkpoint(
    run: Run, teacher: tuple[object, ...], student: Path, weights: Path, tmp_path: Path
) -> None:
    before = weights.read_bytes()
    name, *rest = teacher
    torch.manual_seed(99)  # whatever the process did before
    words = ("--params", 0.3, "--generator", "kfac", *CALIBRATE, "--device", "cpu")
    assert run("generate", name, tmp_path / "again", *rest, *words)[0] == 0
    if not torch.cuda.is_available():
        assert (tmp_path / "again" / "model.safetensors").read_bytes() == (student / "model.safetensors").read_bytes()
    assert weights.read_bytes() == before


def test_random_weights_follow_the_seed(run: Run, tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        words = ("--params", 0.5, "--generator", "svd", "--no-pretrained", "--seed", seed)
        assert run("generate", "test_resnet", tmp_path / folder, *words)[0] == 0
    first, same, other = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in "abc")
    assert first == same
    assert first != other


def test_no_norms_keeps_the_moments(run: Run, teacher: tuple[object, ...], weights: Path, tmp_path: Path) -> None:
    name, *rest = teacher
    words = ("--params", 0.1, "--generator", "svd", "--no-norms", *CALIBRATE)
    assert run("generate", name, tmp_path / "s", *rest, *words)[0] == 0
    model = hypercompress.from_pretrained(tmp_path / "s").model
    dense, _ = hypercompress.models.load_model("test_resnet", checkpoint=weights, model_args=json.loads(ARGS))
    for key, value in dense.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            assert torch.equal(value, model.state_dict()[key])


def test_evaluate_json_equals_an_independent_computation(
    run: Run, student: Path, weights: Path, teacher: tuple[object, ...]
) -> None:
    words = (*DATA, "--against", *teacher, "--images", 200, "--json", "--batch-size", 33, "--device", "cpu")
    code, out, err = run("evaluate", student, *words)
    assert (code, err, out.count("\n")) == (0, "", 1)
    result = json.loads(out)
    assert set(result) == {"top1", "agreement", "kl", "images", "seconds"}

    small = hypercompress.from_pretrained(student)
    dense, _ = hypercompress.models.load_model("test_resnet", checkpoint=weights, model_args=json.loads(ARGS))
    images = open_data("fashion_mnist_mini", Preprocess.of(small), train=False)
    x, y = next(iter(loader(images, batch_size=200, limit=200, seed=0)))
    with torch.no_grad():
        p, q = dense(x).double().softmax(1), small(x).double().softmax(1)
    assert result["images"] == 200
    assert result["seconds"] > 0
    assert result["top1"] == pytest.approx((q.argmax(1) == y).double().mean().item(), abs=1e-6)
    assert result["agreement"] == pytest.approx((p.argmax(1) == q.argmax(1)).double().mean().item(), abs=1e-6)
    assert result["kl"] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-4)


def test_evaluate_without_a_teacher(run: Run, student: Path) -> None:
    code, out, err = run("evaluate", student, *DATA, "--images", 50, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["agreement"] is None
    assert result["kl"] is None
    assert 0 <= result["top1"] <= 1
    code, out, err = run("evaluate", student, *DATA, "--images", 50)
    assert (code, err) == (0, "")
    assert "not measured" in out


def test_a_teacher_of_the_same_name_takes_the_students_arguments(run: Run, student: Path, weights: Path) -> None:
    words = (*DATA, "--against", "test_resnet", "--checkpoint", weights, "--images", 50)
    code, out, err = run("evaluate", student, *words)
    assert (code, err) == (0, "")
    assert "arguments of --against: " in out


def test_a_teacher_against_itself(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    words = ("--params", 1, "--generator", "kfac", *CALIBRATE)
    assert run("generate", name, tmp_path / "s", *rest, *words)[0] == 0
    code, out, _ = run("evaluate", tmp_path / "s", *DATA, "--against", *teacher, "--images", 50, "--json")
    assert code == 0
    result = json.loads(out)
    assert result["agreement"] == 1
    assert result["kl"] == pytest.approx(0, abs=1e-9)


def test_a_timm_model_can_be_evaluated(run: Run, teacher: tuple[object, ...]) -> None:
    code, out, err = run("evaluate", *teacher, *SIZE, *DATA, "--images", 50, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["images"] == 50


def test_unlabelled_images(run: Run, student: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "flat", 9)
    code, out, err = run("evaluate", student, "--data", tmp_path / "flat", "--against", student, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["top1"], result["agreement"], result["images"]) == (None, 1, 9)
    code, _, err = run("evaluate", student, "--data", tmp_path / "flat")
    assert code == 2
    assert err.startswith("error: received the unlabelled images")


def test_generate_reads_the_train_split_and_evaluate_the_other(
    run: Run, teacher: tuple[object, ...], tmp_path: Path
) -> None:
    for split, count in (("train", 8), ("val", 3)):
        for label, name in enumerate(("cat", "dog")):
            write_images(tmp_path / "photos" / split / name, count, seed=label)
    name, *rest = teacher
    words = ("--params", 0.5, "--generator", "kfac", *SIZE, "--data", tmp_path / "photos")
    code, out, err = run("generate", name, tmp_path / "s", *rest, *words)
    assert (code, err) == (0, "")
    assert "calibration: 16 of 16 images" in out
    code, out, err = run("evaluate", tmp_path / "s", "--data", tmp_path / "photos")
    assert (code, err) == (0, "")
    assert "2 in the data, 10 in the model" in out
    assert re.search(r"images\W+6\W", out)


def test_few_images_are_cut_such_that_none_is_alone(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    for count, (used, size) in {7: (6, 2), 33: (32, 2), 96: (96, 6), 97: (96, 6)}.items():
        words = ("--params", 0.5, "--generator", "svd", *SIZE, *DATA, "--images", count, "--overwrite")
        code, out, err = run("generate", name, tmp_path / "s", *rest, *words)
        assert (code, err) == (0, "")
        assert f"calibration: {used} of 4096 images of fashion_mnist_mini, in batches of {size}\n" in out


def test_the_released_hypernetwork_is_what_auto_means(
    run: Run, teacher: tuple[object, ...], hypernet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "RELEASED", hypernet)
    name, *rest = teacher
    code, out, err = run("generate", name, tmp_path / "s", *rest, "--params", 0.3, *CALIBRATE)
    assert (code, err) == (0, "")
    assert "generator: hypernet (chosen by auto)" in out
    code, out, err = run("generate", name, tmp_path / "free", *rest, "--params", 0.3)
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "free" / "report.json").read_text())["fidelity"]["kl"] is None


def test_a_hypernetwork_by_its_folder(run: Run, teacher: tuple[object, ...], hypernet: Path, tmp_path: Path) -> None:
    name, *rest = teacher
    code, out, err = run("generate", name, tmp_path / "s", *rest, "--params", 0.3, "--generator", hypernet, *CALIBRATE)
    assert (code, err) == (0, "")
    assert "generator: mine\n" in out


def test_a_student_can_be_compressed_further(run: Run, student: Path, tmp_path: Path) -> None:
    code, _, err = run("generate", student, tmp_path / "smaller", "--params", 0.15, "--generator", "kfac", *CALIBRATE)
    assert (code, err) == (0, "")
    before, after = hypercompress.from_pretrained(student), hypercompress.from_pretrained(tmp_path / "smaller")
    assert sum(p.numel() for p in after.parameters()) < 0.55 * sum(p.numel() for p in before.parameters())
    assert after.architecture == before.architecture


def test_overwrite_replaces_a_student(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    words = ("generate", name, tmp_path / "s", *rest, "--generator", "svd")
    assert run(*words, "--params", 0.5)[0] == 0
    (tmp_path / "s" / "notes.txt").write_text("of the old one")
    assert run(*words, "--params", 0.3, "--overwrite")[0] == 0
    assert json.loads((tmp_path / "s" / "report.json").read_text())["budget"]["target"] == 0.3
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert not (tmp_path / "s" / "notes.txt").exists()


def rows_of(path: Path) -> dict[str, list[ParetoPoint]]:
    rows: dict[str, list[ParetoPoint]] = {"params": [], "macs": []}
    with path.open() as file:
        for row in csv.DictReader(file):
            rows[row["unit"]].append(ParetoPoint(float(row["share"]), float(row["predicted_kl"])))
    return rows


def test_pareto_needs_no_budget_and_builds_no_student(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    code, out, err = run(
        "generate", name, tmp_path / "s", *rest, "--generator", "kfac", *CALIBRATE, "--pareto", tmp_path / "plots"
    )
    assert (code, err) == (0, "")
    assert "predicted KL, --params" in out
    assert [path.name for path in tmp_path.iterdir()] == ["plots"]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["pareto.csv", "pareto.png"]
    with Image.open(tmp_path / "plots" / "pareto.png") as picture:
        picture.load()
    for points in rows_of(tmp_path / "plots" / "pareto.csv").values():
        shares, losses = [p.share for p in points], [p.predicted_kl for p in points]
        assert shares == sorted(shares)
        assert losses == sorted(losses, reverse=True)
        assert (shares[-1], losses[-1]) == (pytest.approx(1), 0)


def test_pareto_lies_beside_out_and_predicts_its_student(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    words = ("--generator", "kfac", "--params", 0.2, *CALIBRATE, "--pareto", "--json")
    code, out, err = run("generate", name, tmp_path / "s", *rest, *words)
    assert (code, err) == (0, "")
    result = json.loads(out)
    points = rows_of(tmp_path / "pareto.csv")["params"]
    assert [vars(point) for point in points] == result["pareto"]["params"]
    before, after = best_within(points, 0.2), next(point for point in points if point.share > 0.2)
    assert before is not None  # single ranks fill what the steps of the curve leave over
    assert after.predicted_kl <= result["predicted_kl"] <= before.predicted_kl


def test_pareto_refuses(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    (tmp_path / "pareto.csv").write_text("mine")
    words = ("generate", name, *rest, "--pareto", tmp_path)
    code, out, err = run(*words, "--generator", "svd")
    assert (code, out, err.count("\n")) == (2, "", 1)
    for part in ("--pareto without data", "no nats of KL", "pareto.csv, which exist"):
        assert part in err
    assert (tmp_path / "pareto.csv").read_text() == "mine"
    assert run(*words, "--generator", "kfac", *CALIBRATE, "--overwrite")[0] == 0
    assert (tmp_path / "pareto.csv").read_text().startswith("unit,share,predicted_kl\n")


def test_thinning_keeps_the_ends() -> None:
    points = [ParetoPoint(0.1 + 0.9 * (i / 9999) ** 3, 1 - i / 9999) for i in range(10_000)]
    few = thinned(points, 100)
    assert len(few) <= 100
    assert (few[0], few[-1]) == (points[0], points[-1])
    assert set(few) <= set(points)
    assert thinned(few, 100) == few


def test_report_prints_every_layer(run: Run, student: Path) -> None:
    code, out, err = run("report", student)
    assert (code, err) == (0, "")
    report = json.loads((student / "report.json").read_text())
    assert all(row["name"] in out for row in report["layers"])
    code, out, err = run("report", student, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == report


@pytest.mark.parametrize("command", ["generate", "evaluate", "bench", "export", "report"])
def test_each_command_explains_the_common_options(run: Run, command: str) -> None:
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    for option in ("--json", "--seed", "--device"):
        assert option in out


def test_help_and_version(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert all(command in out for command in ("generate", "evaluate", "bench", "export", "report"))
    assert run("--version") == (0, f"{hypercompress.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "COMMAND"),
        (("shrink",), "shrink"),
        (("generate",), "MODEL"),
        (("generate", "test_resnet", "out", "--params", "40%"), "40%"),
        (("generate", "test_resnet", "out", "--param", "0.4"), "--param"),
        (("evaluate", "student"), "--data"),
        (("generate", "test_resnet", "out", "--input-size", "32"), "--input-size"),
    ],
)
def test_a_mistake_in_the_words_is_one_line(run: Run, words: tuple[str, ...], part: str) -> None:
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: received")
    assert part in err
    assert "--help" in err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--latency", "0.6", "--latency-batch-size", "0"), "--latency-batch-size 0"),
        (("--macs", "0.6", "--fast", "--latency-batch-size", "0"), "--latency-batch-size 0"),
        (("--pareto", "--fast", "--latency-batch-size", "0"), "--latency-batch-size 0"),
        (("--latency", "1.6"), "a latency budget of 1.6"),
        (("--latency", "0.5", "--macs", "0.5"), "received --macs 0.5 and --latency 0.5"),
        ((), "received no budget"),
        (("--params", "0.5", "--macs", "0.5"), "expected one; drop the other"),
        (("--params", "0.5", "--device", "tpu"), "--device tpu"),
        (("--params", "0.5", "--device", "cuda:99"), "--device cuda:99"),
        (("--params", "0.5", "--model-args", "{num_classes: 10}"), "no JSON"),
        (("--params", "0.5", "--model-args", "[10]"), "expected a JSON object"),
        (("--params", "0.5", "--generator", "kfacc"), "did you mean kfac"),
        (("--params", "0.5", "--generator", "kfac"), "no calibration data"),
        (("--params", "0.5", "--batch-size", "1"), "--batch-size 1"),
        (("--params", "0.5", "--images", "0"), "--images 0"),
        (("--params", "0.5", "--seed", "-1"), "--seed -1"),
        (("--params", "0.5", "--data", "fashion_mnist_min"), "did you mean fashion_mnist_mini"),
        (("--params", "0.5", "--mean", "0.1", "0.2"), "expected one value, or one for each channel"),
        (("--params", "0.5", "--input-size", "2", "8", "8"), "expected 1 (grey) or 3 (RGB) channels"),
        (("--params", "0.5", "--input-size", "3", "8", "8", "--std", "0"), "above 0"),
        (("--params", "0.5", "--input-size", "3", "64", "64", "--mean", "0", "0"), "one for each channel"),
    ],
)
def test_options_out_of_range(run: Run, tmp_path: Path, words: tuple[str, ...], part: str) -> None:
    generator = () if "--generator" in words else ("--generator", "svd")
    code, out, err = run("generate", "test_resnet", tmp_path / "s", "--no-pretrained", *words, *generator)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: received")
    assert part in err
    assert list(tmp_path.iterdir()) == []


def test_all_faults_are_reported_at_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_module, "_run", lambda *_: pytest.fail("work began"))
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mine.txt").touch()
    words = ("--params", 2, "--data", tmp_path / "none", "--generator", "best", "--device", "tpu", "--model-args", "{")
    code, _, err = run("generate", "test_resnt", tmp_path / "s", *words, "--checkpoint", tmp_path / "none.pth")
    assert (code, err.count("\n")) == (2, 1)
    assert err.count("; also received") == 7
    for part in ("'test_resnt'", "budget of 2", "which exists", "'best'", "--model-args {", "none.pth", "none'", "tpu"):
        assert part in err


def test_images_of_a_size_the_model_refuses(run: Run, tmp_path: Path) -> None:
    words = ("--params", 0.5, "--generator", "svd", "--no-pretrained", "--input-size", 3, 50, 50)
    code, _, err = run("generate", "test_vit", tmp_path / "s", *words)
    assert code == 2
    assert "images of 3 x 50 x 50 that the model does not take" in err or "model arguments" in err
    assert list(tmp_path.iterdir()) == []


def test_evaluate_refuses_what_does_not_match(run: Run, student: Path, weights: Path, tmp_path: Path) -> None:
    for label in range(11):
        write_images(tmp_path / "many" / f"{label:02}", 1)
    code, _, err = run("evaluate", student, "--data", tmp_path / "many")
    assert code == 2
    assert "11 classes for a model of 10 outputs" in err
    words = (*DATA, "--against", "test_resnet", "--no-pretrained", "--model-args", '{"in_chans": 1}')
    code, _, err = run("evaluate", student, *words)
    assert code == 2
    assert "outputs of [10]" in err
    assert "[1000]" in err
    code, _, err = run("evaluate", student, *DATA, "--checkpoint", weights)
    assert code == 2
    assert "--checkpoint with 0 timm models" in err


def test_an_interrupt_is_130(run: Run, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hypercompress.cli.evaluate.measured", interrupted)
    code, out, err = run("evaluate", student, *DATA, "--images", 10, "--json")
    assert (code, out, err) == (130, "", "interrupted\n")


@pytest.mark.parametrize("error", [MemoryError("17 GB"), torch.OutOfMemoryError("17 GB")])
def test_too_little_memory_is_one_line(
    run: Run, student: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def exhausted(*_: object) -> None:
        raise error

    monkeypatch.setattr("hypercompress.cli.evaluate.measured", exhausted)
    code, _, err = run("evaluate", student, *DATA, "--images", 10, "--json")
    assert (code, err.count("\n")) == (2, 1)
    assert "--batch-size" in err


def test_a_terminal_shows_a_bar_but_not_with_json(run: Run, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True)
    code, out, err = run("evaluate", student, *DATA, "--images", 10)
    assert code == 0
    assert "evaluate" in err
    assert "top1" in out
    code, out, err = run("evaluate", student, *DATA, "--images", 10, "--json")
    assert (code, err) == (0, "")
    json.loads(out)


def test_json_has_null_for_what_is_no_number() -> None:
    assert finite({"kl": float("nan"), "rows": [float("inf"), 1.5], "n": 3}) == {
        "kl": None,
        "rows": [None, 1.5],
        "n": 3,
    }


def test_a_reader_that_goes_away_is_no_fault(student: Path, root: Path) -> None:
    code = f"import sys; from hypercompress.cli import main; sys.exit(main(['report', {str(student)!r}]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as stream:
        assert stream.read() == ""
    assert process.wait() == 141
