"""`hypercompress export`: what it writes and prints, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hypercompress
from tests.cli.words import Run
from tests.exported import run_elsewhere, student_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student folder of a network for three colours."""
    path = tmp_path_factory.mktemp("students") / "student"
    student_of("test_resnet").save_pretrained(path)
    return path


SIZE = ("--input-size", "3", "32", "32")
TORCH = ("--format", "torch-export", *SIZE)  # quicker than ONNX


def test_the_command_prints_what_it_measured(run: Run, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "student.onnx"
    code, out, err = run("export", folder, file, *SIZE, "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    result = json.loads(out)
    assert set(result) == {
        *("format", "file", "bytes", "student_bytes", "max_difference", "batch_sizes", "seconds", "int8")
    }
    assert (result["format"], result["file"], result["batch_sizes"]) == ("onnx", str(file), [1, 3])
    assert result["bytes"] == file.stat().st_size
    assert result["int8"] is None
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(run_elsewhere(file, "onnx", x), hypercompress.from_pretrained(folder)(x))


def test_the_command_writes_a_program_of_torch(run: Run, folder: Path, tmp_path: Path) -> None:
    code, out, err = run("export", folder, tmp_path / "student.pt2", *TORCH)
    assert (code, err) == (0, "")
    for text in ("format: torch-export", "bytes: ", "max difference: 0.0e+00", f"saved: {tmp_path / 'student.pt2'}"):
        assert text in out
    assert run_elsewhere(tmp_path / "student.pt2", "torch-export", torch.randn(4, 3, 32, 32)).shape == (4, 10)


def test_an_export_never_replaces_a_part_of_the_student(run: Run, folder: Path) -> None:
    held = (folder / "model.safetensors").read_bytes()
    code, _, err = run("export", folder, folder / "model.safetensors", "--overwrite", *TORCH)
    assert code == 2
    assert "a part of the student itself" in err
    assert (folder / "model.safetensors").read_bytes() == held


def test_the_command_quantizes(run: Run, folder: Path, tmp_path: Path) -> None:
    data = ("--data", "fashion_mnist_mini", "--mean", 0.286, "--std", 0.353, "--images", 64)
    code, out, err = run("export", folder, tmp_path / "file", "--int8", *SIZE, *data)
    assert (code, err) == (0, "")
    assert "preprocessing: 3 x 32 x 32, mean 0.286 0.286 0.286" in out
    assert "max difference before int8: " in out
    assert "int8: static, " in out
    assert "on 16 images" in out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--format", "tflite"), "tflite"),
        (("--format", "torch-export", "--int8"), "received int8 with the format torch-export"),
        (("--data", "fashion_mnist_mini"), "received images without int8"),
        (("--mean", "0.5"), "received --mean or --std without --data"),
        (("--int8", "--data", "nowhere"), "nowhere"),
        (("--batch-size", "0"), "--batch-size 0"),
        (("--device", "tpu"), "--device tpu"),
        (("--model-args", '{"num_classes": 3}'), "model arguments"),
        (("--input-size", "1", "32", "32"), "that the model does not take"),
    ],
)
def test_bad_requests_are_one_line(run: Run, folder: Path, tmp_path: Path, words: tuple[str, ...], part: str) -> None:
    code, out, err = run("export", folder, tmp_path / "file", *words, "--json")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: received")
    assert part in err
    assert list(tmp_path.iterdir()) == []


def test_the_ending_says_the_format(run: Run, folder: Path, tmp_path: Path) -> None:
    code, out, err = run("export", folder, tmp_path / "student.pt2", *SIZE, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["format"] == "torch-export"
    torch.export.load(str(tmp_path / "student.pt2"))


def test_an_ending_that_belies_the_format_is_refused_before_anything_runs(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypercompress.cli.export._run", lambda *_: pytest.fail("work began"))
    for name, words, told in (
        ("s.tflite", (), "whose ending is of a format that is not written here; expected .onnx (onnx) or .pt2"),
        ("s.onnx", ("--format", "torch-export"), "expected onnx, as its ending says"),
        ("s.pt2", ("--int8",), "received int8 with the format torch-export"),
    ):
        code, out, err = run("export", folder, tmp_path / name, *words)
        assert (code, out) == (2, "")
        assert told in err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    code, _, err = run("export", folder, tmp_path / "file", *SIZE)
    assert code == 2
    assert err == (
        f"error: received the output {tmp_path / 'file'}, which exists; expected a new path; choose another or pass "
        "--overwrite (overwrite=True)\n"
    )
    assert (tmp_path / "file").read_text() == "mine"
    assert run("export", folder, tmp_path / "file", *TORCH, "--overwrite")[0] == 0
    assert (tmp_path / "file").stat().st_size > 1000


def test_the_command_names_the_missing_extra(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = run("export", folder, tmp_path / "file", *SIZE)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: received the format onnx without onnxruntime; expected the packages")
    assert "pip install 'hypercompress[export]'" in err


def test_a_kill_while_exporting(run: Run, root: Path, folder: Path, tmp_path: Path) -> None:
    words = ("export", folder, tmp_path / "file", *TORCH)
    lines = [
        "import sys, time, torch",
        "torch.set_num_threads(1)",
        "from hypercompress.cli import main",
        "from hypercompress.export import program",
        "def slow(graph, file):",
        "    file.write_bytes(b'half of it')",
        "    print('writing', flush=True)",
        "    time.sleep(100)",
        "program.write = slow",
        f"sys.exit(main({[str(word) for word in words]!r}))",
    ]
    with subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, text=True, cwd=root) as job:
        assert job.stdout is not None
        assert any("writing" in line for line in job.stdout)
        job.kill()
    assert not (tmp_path / "file").exists()
    assert run(*words)[0] == 0  # what the kill left behind is in nobody's way, and goes
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
