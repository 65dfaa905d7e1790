"""`hypercompress generate` on good input: what it writes and what it prints."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch

import hypercompress
from hypercompress.cli.shown import show_student
from hypercompress.cli.terminal import Terminal
from hypercompress.generator import registry
from hypercompress.latency import _forms
from hypercompress.report import BEFORE_FINAL_FIT, HELD_OUT
from hypercompress.specs import Unit
from tests.cli.words import ARGS, CALIBRATE, DATA, PRECISIONS, Run


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
    told = {"seed": 0, "images": 96, "batch_size": 32, "generator": "kfac", "refit": True, "norms": True}
    told |= {"final_fit": True, "renormalize": False, "steady": False, "fast": False}
    assert report["made_with"] == told
    assert report["calibration"] == "fashion_mnist_mini"


def test_the_student_knows_its_preprocessing(student: Path) -> None:
    cfg = hypercompress.from_pretrained(student).pretrained_cfg
    assert (tuple(cfg["input_size"]), tuple(cfg["mean"]), tuple(cfg["std"])) == ((1, 32, 32), (0.286,), (0.353,))


def test_out_may_stand_behind_options(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    code, _, err = run("generate", name, *rest, "--params", 0.3, "--generator", "svd", tmp_path / "s")
    assert (code, err) == (0, "")
    assert (tmp_path / "s" / "model.safetensors").exists()
    code, _, err = run("generate", name, *rest, "--params", 0.3, "--generator", "svd", "--", tmp_path / "v")
    assert (code, err) == (0, "")
    code, _, err = run("generate", name, tmp_path / "t", *rest, "--params", 0.3, tmp_path / "u")
    assert code == 2
    assert f"unrecognized arguments: {tmp_path / 'u'}" in err


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


def test_generate_prints_each_derived_default(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    code, out, err = run("generate", name, tmp_path / "s", *rest, "--macs", 0.8, "--generator", "whitened", *CALIBRATE)
    assert (code, err) == (0, "")
    assert "preprocessing: 1 x 32 x 32, mean 0.286, std 0.353" in out
    assert re.search(r"^device: (cpu|cuda) \(chosen\)$", out, flags=re.MULTILINE)
    assert "calibration: 96 of 4096 images of fashion_mnist_mini, in batches of 6" in out
    assert "generator: whitened" in out
    assert "strength of the hypernetwork" not in out
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


@pytest.mark.parametrize(
    ("tilt", "told"), [(0.0, []), (2.0, ["allocation: late layers weigh e^2 times as much as early ones"])]
)
def test_a_tilted_allocation_is_told(
    tilt: float, told: list[str], student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads((student / "report.json").read_text())
    with Terminal(quiet=False) as terminal:
        show_student({**report, "tilt": tilt}, terminal)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("allocation")] == told


def test_a_student_whose_outputs_overflow_is_told(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON has no NaN: its KL is null."""
    report = json.loads((student / "report.json").read_text())
    fidelity = {"kl": None, "agreement": None, "top1_teacher": None, "top1_student": None, "images": 12}
    with Terminal(quiet=False) as terminal:
        show_student({**report, "fidelity": fidelity, "calibration": "photos"}, terminal)
    told = "measured: KL not finite on 12 held-out images; then made again of all images"
    assert told in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("right", "images", "told"), [(1.0, 16, True), (1.0, 15, False), (0.95, 16, False), (None, 16, False)]
)
def test_a_teacher_that_may_have_been_trained_on_the_images_is_told(
    right: float | None, images: int, told: bool, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads((student / "report.json").read_text())
    fidelity = {**report["fidelity"], "top1_teacher": right, "top1_student": right, "images": images}
    with Terminal(quiet=False) as terminal:
        show_student({**report, "fidelity": fidelity}, terminal)
    line = "held-out images: the teacher is right on all 16: if it was trained on them, fidelity here says little"
    assert (line in capsys.readouterr().out) == told


@pytest.mark.parametrize("scaled", [True, False])
def test_a_prediction_that_nothing_scaled_is_not_to_be_trusted(
    scaled: bool, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads((student / "report.json").read_text())
    with Terminal(quiet=False) as terminal:
        show_student({**report, "predicted_kl": 0.25}, terminal, scaled=scaled)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("predicted KL"))
    assert line == (
        "predicted KL: 0.25 nats"
        + ("" if scaled else " (ranks students, and is often far too small: go by what is measured)")
    )


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


@pytest.mark.parametrize("last", [True, False])
def test_no_final_fit_leaves_the_held_out_images_out(
    last: bool, run: Run, teacher: tuple[object, ...], tmp_path: Path
) -> None:
    words = ("--params", 0.3, "--generator", "svd", *["--no-final-fit"][last:], *CALIBRATE)
    name, *rest = teacher
    code, out, err = run("generate", name, tmp_path / "s", *rest, *words)
    assert (code, err) == (0, "")
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert ("held-out images; then made again of all images" in out) is last
    assert (report.get("final_fit"), report["made_with"]["final_fit"]) == (True if last else None, last)
    assert report["measured_on"] == (BEFORE_FINAL_FIT if last else HELD_OUT)


def test_no_norms_keeps_the_moments(run: Run, teacher: tuple[object, ...], weights: Path, tmp_path: Path) -> None:
    name, *rest = teacher
    words = ("--params", 0.1, "--generator", "svd", "--no-norms", *CALIBRATE)
    assert run("generate", name, tmp_path / "s", *rest, *words)[0] == 0
    model = hypercompress.from_pretrained(tmp_path / "s").model
    dense, _ = hypercompress.models.load_model("test_resnet", checkpoint=weights, model_args=json.loads(ARGS))
    for key, value in dense.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            assert torch.equal(value, model.state_dict()[key])


def test_the_released_hypernetwork_is_what_auto_means(
    run: Run, teacher: tuple[object, ...], hypernet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "RELEASED", hypernet)
    name, *rest = teacher
    code, out, err = run("generate", name, tmp_path / "s", *rest, "--params", 0.3, *CALIBRATE)
    assert (code, err) == (0, "")
    assert "generator: hypernet (chosen by auto)" in out


def test_a_hypernetwork_by_its_folder(run: Run, teacher: tuple[object, ...], hypernet: Path, tmp_path: Path) -> None:
    name, *rest = teacher
    code, out, err = run("generate", name, tmp_path / "s", *rest, "--params", 0.3, "--generator", hypernet, *CALIBRATE)
    assert (code, err) == (0, "")
    assert "generator: mine\n" in out
    assert re.search(r"^strength of the hypernetwork: (0 \(not used\)|[0-9.]+)$", out, flags=re.MULTILINE)
    code, out, err = run("generate", name, tmp_path / "t", *rest, "--params", 0.3, "--search", 0.1, *CALIBRATE)
    assert (code, err) == (0, "")
    assert "generator: kfac-search\n" in out, "what is searched is the closed form"
    assert "strength of the hypernetwork" not in out


def test_a_student_can_be_compressed_further(run: Run, student: Path, tmp_path: Path) -> None:
    code, _, err = run("generate", student, tmp_path / "smaller", "--params", 0.15, "--generator", "kfac", *CALIBRATE)
    assert (code, err) == (0, "")
    before, after = hypercompress.from_pretrained(student), hypercompress.from_pretrained(tmp_path / "smaller")
    assert sum(p.numel() for p in after.parameters()) < 0.55 * sum(p.numel() for p in before.parameters())
    assert after.architecture == before.architecture


def test_strict_refuses_before_anything_is_measured(
    run: Run, teacher: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, *rest = teacher
    svd = ("--params", 0.8, "--generator", "svd", "--strict")
    assert run("generate", name, tmp_path / "known", *rest, *svd)[0] == 0
    monkeypatch.setattr("hypercompress.cli.generate.prepare", lambda *_, **__: pytest.fail("measuring began"))
    code, _, err = run("generate", "test_coatnet", tmp_path / "coatnet", "--no-pretrained", *svd)
    assert code == 2
    assert "3 of 45 layers are unsupported: stages.2.blocks.0.attn.rel_pos (no kind of layer is registered for" in err
    assert [path.name for path in tmp_path.iterdir()] == ["known"]


def test_a_student_of_a_student_that_is_larger_is_told(run: Run, student: Path, tmp_path: Path) -> None:
    """Shares are of the dense form."""
    count = sum(p.numel() for p in hypercompress.from_pretrained(student).parameters())
    dense = json.loads((student / "report.json").read_text())["teacher"]["params"]
    code, out, err = run("generate", student, tmp_path / "larger", "--params", 0.6, "--generator", "svd")
    assert code == 0
    assert f"MODEL: a student of {count:,} parameters: shares are of its dense form, {dense:,} parameters" in out
    assert err.startswith(f"warning: received a student of {count:,} parameters, of which one of ")
    assert f"pass a smaller budget (as parameters below {count / dense:.3g})" in err
    words = ("generate", student, tmp_path / "smaller", "--params", 0.2, "--generator", "svd")
    code, _, err = run(*words, "--model-args", '{"num_classes": 7}')
    assert code == 2
    assert "student folder" in err
    code, _, err = run(*words)
    assert (code, err) == (0, "")


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_a_student_in_another_precision_stays_in_it(
    run: Run, student: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    hypercompress.from_pretrained(student).to(dtype).save_pretrained(tmp_path / "s")
    code, _, err = run("generate", tmp_path / "s", tmp_path / "out", *DATA, "--images", 48, "--params", 0.2)
    assert (code, err) == (0, "")
    assert next(hypercompress.from_pretrained(tmp_path / "out").parameters()).dtype is dtype


def test_overwrite_replaces_a_student(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    words = ("generate", name, tmp_path / "s", *rest, "--generator", "svd")
    assert run(*words, "--params", 0.5)[0] == 0
    (tmp_path / "s" / "notes.txt").write_text("mine")
    assert run(*words, "--params", 0.3, "--overwrite")[0] == 0
    assert json.loads((tmp_path / "s" / "report.json").read_text())["budget"]["target"] == 0.3
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert (tmp_path / "s" / "notes.txt").read_text() == "mine"
