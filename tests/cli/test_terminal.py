"""What all commands share: help, mistakes in the words, interrupts, bars and pipes."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hypercompress
from hypercompress.cli import generate as generate_module
from hypercompress.cli import main, pareto
from hypercompress.cli.parser import make_parser
from hypercompress.cli.terminal import finite
from tests.cli.words import DATA, Run, write_images


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
        (("--params", "0.5", "--images", "16"), "--images 16 without --data; expected images"),
        (("--params", "0.5", "--data", "synthetic", "--images", "16"), "or --data synthetic:16 for so many"),
        (("--params", "0.5", "--data", "noise:64", "--images", "2"), "or --data noise:6 for so many"),
        (("--params", "0.5", "--latency-batch-size", "4"), "without --latency or --fast"),
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


def test_a_model_that_gives_several_tensors_is_answered_with_what_a_command_has(run: Run, tmp_path: Path) -> None:
    words = ("--no-pretrained", "--model-args", '{"features_only": true}', "--params", 0.5, "--generator", "svd")
    code, _, err = run("generate", "test_resnet", tmp_path / "s", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert "returns list; expected one tensor, or logits; choose another model, leave features_only out of" in err
    assert "forward_fn" not in err


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


def test_what_standard_output_cannot_encode_is_escaped(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for errors, shown in (("strict", b"\\xfcn\\xef.html"), ("replace", b"?n?.html")):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors=errors))
        assert main(["report", str(student), "--html", str(tmp_path / errors / "\xfcn\xef.html")]) == 0
        assert written.getvalue().endswith(shown + os.linesep.encode())


def test_a_tilde_in_an_output_is_the_home(
    run: Run, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert run("report", student, "--html=~/r.html") == (0, f"saved: {tmp_path}/home/r.html\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    words = make_parser().parse_args(["generate", "test_vit", "--params=0.5", "~/s", "--pareto=~/plots"])
    assert (words.out, pareto.folder(words)) == (tmp_path / "home" / "s", tmp_path / "home" / "plots")
    assert make_parser().parse_args(["export", "s", "~/x.pt2"]).file == tmp_path / "home" / "x.pt2"


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
