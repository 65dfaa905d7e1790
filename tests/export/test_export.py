"""Exported files run elsewhere, give the student's outputs at every batch size, and are as small as the student."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import hypercompress
from benchmarks.shared import families
from hypercompress import Student
from hypercompress.errors import ArtefactError, ExportError, ModelError
from hypercompress.export import FORMATS, Exported, checked, export, onnx_file, program
from hypercompress.report import bytes_of
from tests.exported import MLP, mlp_student, run_elsewhere, student_of

NAMES = ("test_resnet", "test_vit")
SUFFIX = {"onnx": ".onnx", "torch-export": ".pt2"}


class Moody(nn.Module):
    """What it computes depends on the numbers it gets: no graph says that."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc(x) if x.sum() > 0 else x
        return output


@pytest.fixture(scope="module", params=[(name, kind) for name in NAMES for kind in FORMATS], ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Student, Path, Exported]:
    name, kind = request.param
    student = student_of(name)
    file = tmp_path_factory.mktemp("exported") / f"student{SUFFIX[kind]}"
    return student, file, export(student, file, kind)


def test_the_file_gives_the_students_outputs_at_any_batch_size(case: tuple[Student, Path, Exported]) -> None:
    student, file, exported = case
    for count in (1, 3, 5):
        x = torch.randn(count, *student.pretrained_cfg["input_size"])
        with torch.no_grad():
            expected = student(x)
        got = run_elsewhere(file, exported.format, x)
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))
    assert exported.batch_sizes == (1, 3)
    assert 0 <= exported.max_difference <= 1e-4


def test_the_file_is_as_small_as_the_student(case: tuple[Student, Path, Exported]) -> None:
    student, file, exported = case
    assert exported.bytes == file.stat().st_size
    assert exported.student_bytes == bytes_of(student)
    assert 0.9 * bytes_of(student) < exported.bytes <= 1.02 * bytes_of(student) + 2**18


def test_the_file_says_nothing_of_this_machine(case: tuple[Student, Path, Exported]) -> None:
    content = case[1].read_bytes()
    assert b"site-packages" not in content
    assert os.fsencode(Path.cwd()) not in content


@pytest.mark.parametrize("kind", FORMATS)
def test_factors_are_stored_as_they_are(tmp_path: Path, kind: str) -> None:
    """A file with the product of two factors, or one of them twice, would be of the dense model's size."""
    student = mlp_student(0.1)
    exported = export(student, tmp_path / "student", kind, input_size=(32,))
    assert exported.bytes < 0.5 * bytes_of(MLP())
    if kind == "onnx":
        stored = sorted(
            len(tensor.raw_data) // 4
            for tensor in onnx.load(tmp_path / "student").graph.initializer
            if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.raw_data) > 4
        )
        assert stored == sorted(tensor.numel() for tensor in student.parameters())


def test_what_can_be_computed_from_the_weights_is_not_stored(tmp_path: Path) -> None:
    """Attention biases that a few weights determine would otherwise be stored for every pair of positions."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.columns = nn.Parameter(torch.randn(200, 1)), nn.Parameter(torch.randn(1, 200))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.rows * self.columns).softmax(1)

    assert export(Outer(), tmp_path / "file", input_size=(200,)).bytes < bytes_of(Outer()) + 2000


@pytest.mark.parametrize("kind", FORMATS)
def test_export_repeats_and_leaves_the_model_alone(tmp_path: Path, kind: str) -> None:
    student = mlp_student().train()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (export(student, tmp_path / name, kind, input_size=(32,)) for name in "ab")
    assert first.max_difference == second.max_difference
    if kind == "onnx":  # torch's archives carry an identity of their own
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert student.training
    assert student.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_is_no_student(tmp_path: Path) -> None:
    exported = hypercompress.export(MLP(), tmp_path / "dense.onnx", input_size=(32,))
    assert exported.student_bytes == bytes_of(MLP())


def test_a_compiled_model_is_exported_as_it_was_written(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    found = export(torch.compile(model), tmp_path / "m.pt2", "torch-export", input_size=(4,))
    x = torch.randn(5, 4)
    torch.testing.assert_close(program.read(tmp_path / "m.pt2")(x), model(x))
    assert found.max_difference < 1e-6


def test_a_size_that_the_model_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"received inputs of the size \(3,\), which the model does not take .*input_s"
    ):
        export(nn.Linear(4, 2), tmp_path / "m.pt2", "torch-export", input_size=(3,))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_a_model_without_a_graph_is_refused_with_the_reason(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match=r"received a model that torch\.export cannot trace") as caught:
        export(Moody(), tmp_path / "file", kind, input_size=(4,), overwrite=True)
    assert "\n" not in str(caught.value)
    assert "data-dependent" in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "mine"}


def test_an_operation_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    class Exotic(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.airy_ai(super().forward(x))

    with pytest.raises(ExportError, match=r"no translation to ONNX \(.*airy_ai.*\); expected operations that ONNX has"):
        export(Exotic(), tmp_path / "file", input_size=(32,))
    assert list(tmp_path.iterdir()) == []
    export(Exotic(), tmp_path / "file", "torch-export", input_size=(32,))


def test_a_file_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = onnx_file.OnnxModel.forward
    for shift, text in ((2e-3, "differ from the model's by 2.0e-03"), (float("nan"), "differ from the model's by nan")):
        monkeypatch.setattr(onnx_file.OnnxModel, "forward", lambda self, x, s=shift: forward(self, x) + s)
        with pytest.raises(ExportError, match=text):
            export(MLP(), tmp_path / "file", input_size=(32,))
    monkeypatch.setattr(onnx_file.OnnxModel, "forward", lambda self, x: forward(self, x)[:1])
    with pytest.raises(ExportError, match=r"received outputs of \[1, 7\].*expected \[3, 7\]"):
        export(MLP(), tmp_path / "file", input_size=(32,))
    assert list(tmp_path.iterdir()) == []


def test_a_difference_is_measured_by_the_largest_output() -> None:
    inputs = [torch.tensor([[3.0, -200.0]]), torch.tensor([[1.0, 0.0]])]
    double = nn.Linear(2, 2, bias=False)
    double.weight.data = 1.01 * torch.eye(2)
    assert checked.largest_difference(double, inputs, inputs) == pytest.approx(0.01)
    assert checked.largest_difference(double, inputs[1:], inputs[1:]) == pytest.approx(0.01)  # outputs of 1
    small = [1e-3 * inputs[1]]
    assert checked.largest_difference(double, small, small) == pytest.approx(1e-5, rel=1e-4)  # below 1: absolute


def test_a_file_that_is_too_large_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = bytes_of(MLP())
    checked.require_small(weight + 2**20, weight)
    with pytest.raises(ExportError, match=r"received a file of .* expected at most"):
        checked.require_small(2 * weight + 2**20, weight)
    monkeypatch.setattr(checked, "GRAPH_BYTES", -weight)
    with pytest.raises(ExportError, match="received a file of"):
        export(MLP(), tmp_path / "file", input_size=(32,))
    monkeypatch.setattr(onnx_file, "LARGEST", 1000)
    with pytest.raises(ExportError, match="because one ONNX file ends at 2 GiB; use the format torch-export"):
        export(MLP(), tmp_path / "file", input_size=(32,))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("s.pt2", None, "torch-export"),
        ("s.onnx", None, "onnx"),
        ("S.PT2", None, "torch-export"),
        ("s", None, "onnx"),
        ("resnet50.a1_in1k", None, "onnx"),
        ("s.file", "torch-export", "torch-export"),
        ("s.pth", "torch-export", "torch-export"),
        ("s.pt2", "onnx", r"received the format onnx for the file s\.pt2; expected torch-export, as its ending says"),
        ("s.onnx", "torch-export", r"received the format torch-export for .*; expected onnx, as"),
        ("s.tflite", None, r"received the file s\.tflite, .*; expected \.onnx \(onnx\) or \.pt2 \(torch-export\)"),
        ("s.pth", None, r"received the file s\.pth, whose ending is of a format that is not written here"),
        ("s.ts", None, r"received the file s\.ts, whose ending is of a format that is not written here"),
        ("s.torchscript", None, r"received the file s\.torchscript, whose ending is of a format that is not written"),
        ("s.JIT", None, r"received the file s\.JIT, whose ending is of a format that is not written here"),
    ],
)
def test_the_ending_says_the_format_or_belies_it(name: str, given: str | None, wanted: str) -> None:
    if wanted in FORMATS:
        assert checked.format_of(Path(name), given) == wanted
        return
    with pytest.raises(ExportError, match=wanted):
        export(MLP(), name, given, input_size=(32,))
    assert not Path(name).exists()


def test_a_program_of_torch_is_written_by_its_ending(tmp_path: Path) -> None:
    assert export(MLP(), tmp_path / "s.pt2", input_size=(32,)).format == "torch-export"
    torch.export.load(str(tmp_path / "s.pt2"))


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    images = [torch.randn(8, 32)]
    for words, text in (
        ({"format": "tflite"}, "received the format 'tflite'; expected onnx or torch-export"),
        ({"format": "torch-export", "int8": True}, "received int8 with the format torch-export"),
        ({"data": images}, "received images without int8"),
    ):
        with pytest.raises(ExportError, match=text):
            export(MLP(), tmp_path / "file", input_size=(32,), **words)
    with pytest.raises(ModelError, match="received a model without an input size"):
        export(MLP(), tmp_path / "file")
    with pytest.raises(ArtefactError, match="a folder; expected a file"):
        export(MLP(), tmp_path, input_size=(32,), overwrite=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", onnx_file.PACKAGES)
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ExportError, match=rf"without {name};.*pip install 'hypercompress\[export\]'"):
        export(MLP(), tmp_path / "file", input_size=(32,))
    export(MLP(), tmp_path / "file", "torch-export", input_size=(32,))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object, file: Path) -> None:
        file.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(program, "write", full)
    with pytest.raises(ArtefactError, match=r"No space left on device.*unchanged"):
        export(MLP(), tmp_path / "file", "torch-export", input_size=(32,), overwrite=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "mine"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has such a device")
def test_a_program_for_a_full_disk_is_an_error_and_no_abort() -> None:
    with torch.no_grad():
        graph = program.trace(MLP().eval(), torch.randn(2, 32))
    with pytest.raises(OSError, match="No space left on device"):
        program.write(graph, Path("/dev/full"))


def test_a_student_compiles_as_one_graph() -> None:
    student = mlp_student()
    compiled = torch.compile(student, backend="eager", fullgraph=True, dynamic=True)
    for count in (1, 3):
        x = torch.randn(count, 32)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), student(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", families.FAMILIES)
def test_many_families(tmp_path: Path, name: str, record_property: Callable[[str, object], None]) -> None:
    student, size = families.student_of(name)
    for kind in FORMATS:
        exported = export(student, tmp_path / kind, kind, input_size=size)
        assert kind != "onnx" or exported.bytes <= 1.06 * bytes_of(student) + 2**18  # LeViT stores its biases as tables
        record_property(kind, exported.as_json())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_student_compiles_to_machine_code(name: str) -> None:
    student = student_of(name)
    compiled = torch.compile(student, fullgraph=True, dynamic=True)
    for count in (1, 3):
        x = torch.randn(count, *student.pretrained_cfg["input_size"])
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), student(x), rtol=1e-4, atol=1e-4)
