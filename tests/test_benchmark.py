"""Measuring speed: what is run and in which state; and `hypercompress bench`."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import hypercompress
from hypercompress import Budget, Student, benchmark
from hypercompress.benchmark import Settings, compare_layers, compare_models, dense_twin
from hypercompress.errors import BenchmarkError
from hypercompress.inspection import inspect
from hypercompress.running.timing import Timing
from hypercompress.specs import LayerSpec
from hypercompress.student import low_rank_layers
from tests.benchmarked import CONTRACT, images
from tests.cli.words import Run


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    teacher = timm.create_model("test_resnet", num_classes=10, pretrained_cfg_overlay={"input_size": (3, 32, 32)})
    return hypercompress.compress(teacher.eval(), Budget(params=0.4), generator="svd")


@pytest.fixture(scope="module")
def folder(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("students") / "student"
    student.save_pretrained(path)
    return path


@pytest.fixture
def run(run: Run) -> Run:
    """`hypercompress bench`."""
    return partial(run, "bench")


@pytest.mark.parametrize("channels_last", [False, True])
def test_models_are_left_as_they_were(student: Student, channels_last: bool) -> None:
    teacher = student.to_dense()
    teacher.layer1.train()  # part of it only
    next(teacher.parameters()).requires_grad_(False)
    models = (teacher, student)

    def state() -> list[Any]:
        tensors = [(k, t.clone(), t.stride(), t.requires_grad) for m in models for k, t in m.named_parameters()]
        flags = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for x in models for m in x.modules()]
        return [*tensors, *flags, torch.get_num_threads()]

    before, settings = state(), Settings(seconds=0.01, threads=1, channels_last=channels_last)
    compare_models(teacher, student, images(), settings)
    compare_layers(student, images(), settings)
    for old, new in zip(before, state(), strict=True):
        if isinstance(old, tuple) and isinstance(old[1], Tensor):
            assert torch.equal(old[1], new[1])
            assert (old[0], *old[2:]) == (new[0], *new[2:])
        else:
            assert old == new
    teacher.eval()


def test_a_model_is_not_compared_with_itself(student: Student) -> None:
    with pytest.raises(BenchmarkError, match="one model twice"):
        compare_models(student, student, images())
    with pytest.raises(BenchmarkError, match="without factored layers"):
        dense_twin(Student(nn.Linear(4, 4)))
    assert not low_rank_layers(dense_twin(student))


@pytest.mark.parametrize("channels_last", [False, True])
def test_every_factored_layer_is_timed(student: Student, channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: dict[str, list[Tensor]] = {}

    def fake(calls: list[Callable[[], Any]], *_: object, **__: object) -> list[Timing]:
        outputs = [call() for call in calls]
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-3)  # one layer, in two forms
        return [Timing((1.0,) * 5), Timing((2.0,) * 5)]

    def note(name: str) -> Callable[..., None]:
        return lambda _, inputs: batches.setdefault(name, []).append(inputs[0])

    monkeypatch.setattr(benchmark, "interleaved", fake)
    layers = low_rank_layers(student.model)
    handles = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]  # copies keep hooks
    rows = compare_layers(student, images(3), Settings(channels_last=channels_last))
    for handle in handles:
        handle.remove()
    spec = {layer.name: layer for layer in inspect(student.to_dense(), images()).candidates}
    assert [row.name for row in rows] == list(layers)
    for row in rows:
        layer: LayerSpec = spec[row.name]
        assert row.speed.macs_ratio == pytest.approx(layer.dense_macs / (row.rank * layer.rank_macs))
        real, noise = batches[row.name]
        assert row.input_size == tuple(real.shape) == tuple(noise.shape)
        assert real.stride() == noise.stride()
        assert row.slower
        assert row.as_json()["speedup"] == 0.5


class Named(nn.Module):
    """Calls its layer by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(input=x)
        return out


def test_a_layer_that_is_called_by_keyword_is_timed() -> None:
    torch.manual_seed(0)
    student = hypercompress.compress(Named(), Budget(params=0.5), generator="svd", example=torch.randn(2, 32))
    rows = compare_layers(student, torch.randn(2, 32), Settings(seconds=0.01))
    assert [(row.name, row.input_size) for row in rows] == [("layer", (2, 32))]


def test_bench_prints_the_rows_of_the_contract(run: Run, folder: Path) -> None:
    words = ("--batch-size", 1, "--batch-size", 3, "--threads", 1, "--seconds", 0.01, "--layers", "--device", "cpu")
    code, out, err = run(folder, *words, "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    result = json.loads(out)
    report = json.loads((folder / "report.json").read_text())
    assert [row["batch_size"] for row in result["rows"]] == [1, 3]
    for row in result["rows"]:
        assert set(row) >= CONTRACT
        assert (row["threads"], row["device"]) == (1, "cpu")
        assert row["speedup"] == pytest.approx(row["teacher_ms"] / row["student_ms"])
        assert row["macs_ratio"] == pytest.approx(report["teacher"]["macs"] / report["student"]["macs"])
        assert row["efficiency"] == pytest.approx(row["speedup"] / row["macs_ratio"])
    factored = [row["name"] for row in report["layers"] if row["rank"] is not None]
    assert [row["name"] for row in result["layers"]] == factored * 2
    assert {"dense_ms", "low_rank_ms", "slower"} <= set(result["layers"][0])
    code, out, err = run(folder, *words)
    assert (code, err) == (0, "")
    assert "against: STUDENT multiplied out" in out
    assert all(part in out for part in ("efficiency", "MACs ratio", *factored))


def test_bench_by_default(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(_: nn.Module, __: nn.Module, batch: Tensor, settings: Settings) -> benchmark.ModelSpeed:
        asked.append((tuple(batch.shape), settings))
        times = Timing((1.0,) * 5)
        return benchmark.ModelSpeed(len(batch), 1, "cpu", "float32", False, benchmark.Speed(times, times, 2.0))

    monkeypatch.setattr("hypercompress.cli.bench.compare_models", fake)
    code, out, err = run(folder, "--json")
    assert (code, err) == (0, "")
    assert asked == [((1, 3, 32, 32), Settings()), ((32, 3, 32, 32), Settings())]
    assert "layers" not in json.loads(out)


@pytest.mark.parametrize("words", [(), ("--against", "test_resnet")])
def test_bench_in_another_precision(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...]
) -> None:
    seen: set[torch.dtype] = set()

    def spy(teacher: nn.Module, student: nn.Module, batch: Tensor, settings: Settings) -> benchmark.ModelSpeed:
        seen.update(
            t.dtype for model in (teacher, student) for t in model.state_dict().values() if t.is_floating_point()
        )
        seen.add(batch.dtype)
        return compare_models(teacher, student, batch, settings)

    monkeypatch.setattr("hypercompress.cli.bench.compare_models", spy)
    short = ("--batch-size", 2, "--seconds", 0.01, "--dtype", "bfloat16", "--device", "cpu", "--layers", "--json")
    code, out, err = run(folder, *short, *words)
    assert (code, err) == (0, "")
    assert seen == {torch.bfloat16}
    result = json.loads(out)
    assert result["rows"][0]["dtype"] == "bfloat16"
    assert result["layers"]


def test_bench_against_another_model(run: Run, folder: Path, student: Student) -> None:
    words = ("--batch-size", 1, "--seconds", 0.01, "--channels-last")
    code, out, err = run(folder, *words, "--against", "test_resnet")
    assert (code, err) == (0, "")
    assert "against: test_resnet with random weights" in out
    assert "'num_classes': 10" in out  # those of the student
    args = ("--against", "test_vit", "--model-args", '{"img_size": 64}', "--input-size", 3, 64, 64)
    code, out, err = run(folder, *words, *args, "--json")
    assert (code, err) == (0, "")
    (row,) = json.loads(out)["rows"]
    macs = [inspect(m, torch.randn(1, 3, 64, 64)).macs for m in (timm.create_model("test_vit", img_size=64), student)]
    assert row["macs_ratio"] == pytest.approx(macs[0] / macs[1])
    assert row["channels_last"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--batch-size", 0), ["--batch-size 0"]),
        (("--threads", 0), ["received 0 threads"]),
        (("--dtype", "float8"), ["float8", "bfloat16"]),
        (("--seconds", -1), ["received -1 seconds"]),
        (("--against", "test_resnt"), ["did you mean test_resnet"]),
        (("--model-args", "{}"), ["--model-args without a timm name"]),
        (("--input-size", 1, 32, 32), ["images of 1 x 32 x 32 that the model does not take"]),
        (("--batch-size", 10**14), ["beyond the memory"]),
        (("--batch-size", 2**60), ["beyond the memory"]),
        (("--threads", 0, "--seconds", 0, "--device", "tpu"), ["; also received", "0 threads", "0 seconds", "tpu"]),
    ],
)
def test_bench_refuses(run: Run, folder: Path, words: tuple[object, ...], parts: list[str]) -> None:
    code, out, err = run(folder, *words, "--json")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: received")
    assert all(part in err for part in parts)


def test_bench_refuses_a_student_without_a_counterpart(run: Run, folder: Path, tmp_path: Path) -> None:
    for words, part in (
        ((folder, "--against", folder / ".." / "student"), "which is STUDENT"),
        ((tmp_path / "none",), "which is no student folder"),
    ):
        code, _, err = run(*words)
        assert (code, err.count("\n")) == (2, 1)
        assert part in err
    dense = timm.create_model("test_resnet", num_classes=10).eval()
    hypercompress.compress(dense, Budget(params=1.0), generator="svd").save_pretrained(tmp_path / "whole")
    code, _, err = run(tmp_path / "whole")
    assert (code, err.count("\n")) == (2, 1)
    assert "without factored layers" in err


def test_bench_needs_to_know_the_size_of_an_input(
    run: Run, folder: Path, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = Student(student.to_dense())
    vars(unknown.model)["pretrained_cfg"] = {}
    monkeypatch.setattr("hypercompress.cli.bench.from_pretrained", lambda _: unknown)
    code, _, err = run(folder)
    assert code == 2
    assert "pass --input-size C H W" in err


def test_a_fault_of_the_program_keeps_its_traceback(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("of another kind")

    monkeypatch.setattr("hypercompress.cli.bench.compare_models", broken)
    with pytest.raises(RuntimeError, match="of another kind"):
        run(folder)
