"""The facade: any module and any batch in, a student within budget out, the teacher untouched."""

import copy
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hypercompress
from hypercompress.compress import compress, finish
from hypercompress.errors import DataError, GeneratorError, ModelError
from hypercompress.fidelity import compare
from hypercompress.generator import ANALYTIC, HypernetConfig, HypernetGenerator, Hypernetwork
from hypercompress.preparation import example, prepare
from hypercompress.preparation.example import INSPECTED, dtype_of, example_of
from hypercompress.report import bytes_of
from hypercompress.running.calibration import require_batches, split_batches
from hypercompress.specs import Budget, Generation, ModelSpec
from hypercompress.student import Student

CPU = torch.device("cpu")


class Words(nn.Module):
    """Takes keywords, returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc, self.head = nn.Embedding(20, 16), nn.Linear(16, 48), nn.Linear(48, 5)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.fc(self.embed(ids)).relu()
        pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(pooled), pooled


class Outer(nn.Module):
    """Holds a matrix that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(32))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


def first(model: nn.Module, batch: Any) -> Tensor:
    output: Tensor = model(**batch)[0]
    return output


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 9, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    ).eval()


def batches(count: int = 9, size: int = 6) -> list[Tensor]:
    return list(torch.randn(count * size, 1, 8, 8, generator=torch.Generator().manual_seed(0)).split(size))


def noisy_hypernet() -> HypernetGenerator:
    net = Hypernetwork(HypernetConfig(width=16, depth=1, heads=2))
    for parameter in net.parameters():
        parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return HypernetGenerator(net)


@pytest.mark.parametrize(
    "generator", ["svd", "whitened", "kfac", "prior", noisy_hypernet()], ids=lambda g: getattr(g, "name", g)
)
@pytest.mark.parametrize("budget", [Budget(params=0.4), Budget(macs=0.5)], ids=str)
def test_budget_is_met_and_the_report_is_true(generator: Any, budget: Budget) -> None:
    teacher = network()
    before = copy.deepcopy(teacher.state_dict())
    student = compress(teacher, budget, batches(), generator)
    report = student.report
    assert report["student"][str(budget.unit)] <= budget.share * report["teacher"][str(budget.unit)]
    assert report["student"]["params"] == sum(p.numel() for p in student.parameters())
    assert report["student"]["bytes"] == bytes_of(student) < report["teacher"]["bytes"]
    split = split_batches(batches(), CPU)
    measured = compare(teacher, student, split.confirm)
    assert report["fidelity"]["kl"] == pytest.approx(measured.kl)
    assert report["fidelity"]["images"] == 6
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(module._forward_hooks for module in teacher.modules())


def test_same_arguments_same_student() -> None:
    teacher = network()
    a, b = (compress(teacher, Budget(params=0.4), batches(), "kfac", seed=3) for _ in range(2))
    assert all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (torch.zeros(6, 1, 8, 8, dtype=torch.uint8), r"torch\.uint8 \[6, 1, 8, 8\] that the model does not take"),
        ((torch.zeros(6, 3, 8, 8), torch.zeros(6)), r"torch\.float32 \[6, 3, 8, 8\], torch\.float32 \[6\]"),
        (torch.zeros(6, 1, 9, 11), r"torch\.float32 \[6, 1, 9, 11\]"),
    ],
    ids=["bytes", "channels", "size"],
)
def test_batches_that_the_model_does_not_take(batch: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words) as told:
        compress(network(), Budget(params=0.5), [batch] * 3, "kfac")
    assert type(told.value.__cause__) is RuntimeError
    assert "turn whole numbers into real ones" in str(told.value)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("17 GB"), RuntimeError("can't allocate memory: 17 GB")], ids=str
)
def test_a_lack_of_memory_is_no_fault_of_the_batch(error: RuntimeError) -> None:
    def exhausted(*_: Any) -> Tensor:
        raise error

    with pytest.raises(RuntimeError, match="17 GB") as told:
        compress(network(), Budget(params=0.5), batches(3), "kfac", forward_fn=exhausted)
    assert told.value is error


def test_strict_refuses_a_layer_that_is_unsupported() -> None:
    model, example = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), Outer(), nn.Linear(32, 4)).eval(), batches()[0]
    words = r"1 of 3 layers are unsupported: 2 \(no kind of layer is registered for Outer\); expected none"
    with pytest.raises(ModelError, match=words):
        compress(model, Budget(params=0.9), None, "svd", example=example, strict=True)
    assert compress(model, Budget(params=0.9), None, "svd", example=example).ranks
    assert compress(network(), Budget(params=0.5), None, "svd", example=example, strict=True).ranks


def test_strict_takes_a_position_embedding_that_a_transformer_holds_itself() -> None:
    vit, example = timm.create_model("test_vit", img_size=32).eval(), torch.zeros(2, 3, 32, 32)
    student = compress(vit, Budget(params=0.7), None, "svd", example=example, strict=True)
    assert [row["name"] for row in student.report["layers"] if row["status"] == "unsupported"] == [""]


def test_the_name_of_a_set_is_no_data() -> None:
    with pytest.raises(DataError, match=r"the text 'photos' as calibration data; .* pass loader\(open_data\('photos'"):
        compress(network(), Budget(params=0.5), "photos", "kfac")
    with pytest.raises(DataError, match="the text 'photos' as calibration data"):
        require_batches(Path("photos"))


def test_a_student_of_a_student_that_is_larger_is_told() -> None:
    """A budget is a share of the dense form."""
    teacher, example = network(), batches()[0]
    count = sum(p.numel() for p in teacher.parameters())
    small = compress(teacher, Budget(params=0.3), None, "svd", example=example)
    with pytest.warns(UserWarning, match=f"shares are of its dense form, of {count:,} parameters"):
        larger = compress(small, Budget(params=0.6), None, "svd", example=example)
    assert larger.report["student"]["params"] > small.report["student"]["params"]
    compress(small, Budget(params=0.25), None, "svd", example=example)  # warnings are errors


def test_guarded_student_is_no_worse_than_the_analytic_one_on_unseen_images() -> None:
    teacher, split = network(), split_batches(batches(), CPU)
    kl = {}
    for name, generator in (("kfac", "kfac"), ("hypernet", noisy_hypernet())):
        student = compress(teacher, Budget(params=0.3), batches(), generator, norms=False)
        kl[name] = compare(teacher, student, split.confirm).kl
        assert student.report["norms"] == "kept"
    assert kl["hypernet"] <= kl["kfac"] * (1 + 1e-6)


def test_memory_bounds_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large batch as many samples at once as have few enough outputs; what is measured is the same."""
    model, data = network(), [torch.randn(24, 1, 7, 7) for _ in range(3)]
    whole, at_once = prepare(model, data, "kfac"), fishers(model, data, seeds=range(4))
    outputs = sum(layer.positions * layer.out for layer in whole.spec.layers)
    assert outputs == 16 * 9 + 32 + 4
    monkeypatch.setattr(example, "LARGEST_PASS", 5 * outputs + 1)
    sizes: list[int] = []
    model.register_forward_hook(
        lambda _m, inputs, _o: sizes.append(len(inputs[0])) if torch.is_grad_enabled() else None
    )
    cut = prepare(model, data, "kfac")
    assert sizes == [5, 5, 5, 5, 4]
    in_pieces = fishers(model, data, seeds=range(4, 8))
    for name, sketch in whole.sketches.items():
        found, wanted = cut.sketches[name].curvature, sketch.curvature
        assert found is not None
        assert wanted is not None
        torch.testing.assert_close(found.signal, wanted.signal)
        torch.testing.assert_close(found.mean, wanted.mean)
        # Of other random signs; the trace of one run is within a tenth (one deviation), so a mean of four within 1/20.
        assert 0.7 < in_pieces[name] / at_once[name] < 1.4


def fishers(model: nn.Module, data: list[torch.Tensor], seeds: range) -> dict[str, float]:
    """The trace of each layer's Fisher, in the mean of several draws of the signs."""
    found: dict[str, float] = defaultdict(float)
    for seed in seeds:
        for name, sketch in prepare(model, data, "kfac", seed=seed).sketches.items():
            assert sketch.curvature is not None
            found[name] += float(sketch.curvature.fisher.trace()) / len(seeds)
    return found


def test_one_plan_serves_many_budgets() -> None:
    teacher = network()
    plan = prepare(teacher, batches(), "kfac")
    for share in (0.3, 0.5, 0.8):
        ours, theirs = finish(plan, Budget(params=share)), compress(teacher, Budget(params=share), batches(), "kfac")
        assert ours.ranks == theirs.ranks
        assert all(torch.equal(t, theirs.state_dict()[name]) for name, t in ours.state_dict().items())


def test_dict_batches_and_a_forward_function() -> None:
    teacher = Words().eval()
    data = [{"ids": torch.randint(20, (4, 7)), "mask": torch.ones(4, 7)} for _ in range(3)]
    student = hypercompress.compress(teacher, Budget(params=0.7), data, "kfac", forward_fn=first)
    assert student(**data[0])[0].shape == (4, 5)
    with pytest.raises(ModelError, match="returns tuple; expected one tensor; pass forward_fn="):
        compress(teacher, Budget(params=0.7), data, "kfac")


def test_a_compiled_model_gives_the_student_of_the_one_that_was_compiled() -> None:
    model = network()
    wanted = compress(model, Budget(params=0.5), batches())
    got = compress(torch.compile(model), Budget(params=0.5), batches())
    assert got.state_dict().keys() == wanted.state_dict().keys()
    assert all(torch.equal(value, got.state_dict()[name]) for name, value in wanted.state_dict().items())


@pytest.mark.parametrize("data", [True, False])
def test_inference_mode_changes_nothing(data: bool) -> None:
    model = network()
    wanted = compress(model, Budget(params=0.5), batches() if data else None, example=batches()[0])
    with torch.inference_mode():
        images = [batch.clone() for batch in batches()]
        inside = compress(model, Budget(params=0.5), images if data else None, example=images[0])
    outside = compress(model, Budget(params=0.5), images if data else None, example=images[0])
    for got in (inside, outside):
        assert all(torch.equal(value, got.state_dict()[name]) for name, value in wanted.state_dict().items())
        assert not any(parameter.is_inference() for parameter in got.parameters())


def test_a_model_that_keeps_its_activations() -> None:
    class Keeping(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            self.hidden = self[0](x)
            output: Tensor = nn.Sequential(*list(self)[1:])(self.hidden)
            return output

    model = Keeping(*network())
    wanted = compress(nn.Sequential(*model), Budget(params=0.5), batches())
    model(batches()[0])  # leaves an activation on the graph of this pass
    got = compress(model, Budget(params=0.5), batches())
    assert all(torch.equal(value, got.state_dict()[name]) for name, value in wanted.state_dict().items())


@pytest.mark.parametrize("norms", [True, False])
def test_buffers_that_forward_passes_write_into_are_the_teacher_s(norms: bool) -> None:
    class Counting(nn.Sequential):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__(*layers)
            self.register_buffer("calls", torch.tensor(7))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            output: Tensor = super().forward(x)
            return output

    model = Counting(*network())
    wanted = compress(nn.Sequential(*model), Budget(params=0.3), batches(), refit=not norms, norms=norms)
    student = compress(model, Budget(params=0.3), batches(), refit=not norms, norms=norms)
    assert int(model.calls) == int(student.model.get_buffer("calls")) == 7
    for name, value in wanted.state_dict().items():
        assert torch.equal(value, student.state_dict()[name])


def test_the_caller_s_random_state_is_kept() -> None:
    model, images = network(), torch.cat(batches())
    before = torch.get_rng_state()
    shuffled = compress(model, Budget(params=0.5), DataLoader(TensorDataset(images), batch_size=6, shuffle=True))
    compress(model, Budget(params=0.5), example=images[:2])
    wanted = compress(model, Budget(params=0.5), batches())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)  # nothing depends on it but the order of the caller's own loader
    again = compress(model, Budget(params=0.5), batches()).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in wanted.state_dict().items())
    assert not all(torch.equal(value, again[name]) for name, value in shuffled.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_batches_are_cast_to_the_model_s_type(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    got = compress(model, Budget(params=0.5), batches())
    wanted = compress(model, Budget(params=0.5), [batch.to(dtype) for batch in batches()]).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in got.state_dict().items())
    seen = set[torch.dtype]()

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        seen.add(batch.dtype)
        output: Tensor = model(batch.to(dtype))
        return output

    compress(model, Budget(params=0.5), batches(), forward_fn=forward)  # it reads them as they are
    assert seen == {torch.float32}
    model[0].to(torch.float32)
    assert dtype_of(model) is None


def test_labels_are_not_read_for_the_student() -> None:
    teacher = network()
    plain = compress(teacher, Budget(params=0.4), batches(), "kfac")
    labelled = compress(teacher, Budget(params=0.4), [(b, torch.randint(4, (len(b),))) for b in batches()], "kfac")
    assert all(torch.equal(t, labelled.state_dict()[name]) for name, t in plain.state_dict().items())
    assert labelled.report["fidelity"]["top1_teacher"] is not None
    assert plain.report["fidelity"]["top1_teacher"] is None


def test_the_names_of_classes_are_carried_over() -> None:
    moved = Student(network(), report={"transfer": {"classes": list("abcd")}})
    options: dict[str, Any] = {"generator": "svd", "example": torch.randn(2, 1, 7, 7)}
    once = compress(moved, Budget(params=0.9), **options)
    twice = compress(once, Budget(params=0.8), **options)
    assert once.report["classes"] == twice.report["classes"] == list("abcd")
    assert "classes" not in compress(network(), Budget(params=0.9), **options).report


def test_without_data_a_timm_model_needs_nothing_and_another_an_example() -> None:
    teacher = timm.create_model("test_resnet", pretrained=False).eval()
    student = compress(teacher, Budget(params=0.5), None, "prior")
    assert student.architecture is not None
    assert student.report["fidelity"]["kl"] is None
    with pytest.raises(ModelError, match="without pretrained_cfg and no data; expected an example"):
        compress(network(), Budget(params=0.5), None, "svd")
    assert compress(network(), Budget(params=0.5), None, "svd", example=batches()[0]).ranks
    with pytest.raises(GeneratorError, match="received no calibration data"):
        compress(network(), Budget(params=0.5), None, "kfac", example=batches()[0])


def test_any_object_with_the_interface_generates() -> None:
    class Nothing:
        name = "nothing"

        def generate(self, spec: ModelSpec, sketches: Any, budget: Budget) -> Generation:

            return ANALYTIC["svd"].generate(spec, sketches, Budget(params=1.0))

    student = compress(network(), Budget(params=1.0), batches(), Nothing())
    assert student.ranks == {}
    torch.testing.assert_close(student(batches()[0]), network_like(student)(batches()[0]))


def network_like(student: nn.Module) -> nn.Module:
    model = network()
    model.load_state_dict(student.model.state_dict())
    return model


@pytest.mark.parametrize("generator", ["kfac", Path("nowhere/at/all")])
def test_generators_by_name_or_folder(generator: Any) -> None:
    if isinstance(generator, Path):
        with pytest.raises(GeneratorError, match="received the generator 'nowhere/at/all'"):
            compress(network(), Budget(params=0.5), batches(), generator)
    else:
        assert compress(network(), Budget(params=0.5), batches(), generator).report["generator"]["name"] == generator


def test_example_comes_from_the_caller_then_the_data_then_the_model() -> None:
    model = timm.create_model("test_vit", pretrained=False)
    data = split_batches(batches(), CPU)
    assert torch.equal(example_of(model, data, batches()[3]), batches()[3])
    assert torch.equal(example_of(model, data, None), data.statistics[0][:INSPECTED])
    large = split_batches([torch.randn(4, 3, 320, 320) for _ in range(4)], CPU)  # of which two are more than enough
    assert torch.equal(example_of(model, large, None), large.statistics[0][:2])
    assert example_of(model, None, None).shape == (2, *model.pretrained_cfg["input_size"])


def test_bytes_count_tied_tensors_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    assert bytes_of(model) == 4 * (16 + 4 * 4) + 8


@pytest.mark.parametrize("generator", ["svd", "hypernet"])
def test_progress_names_each_layer_that_is_factorized(generator: str) -> None:
    model, seen = timm.create_model("test_resnet", pretrained=False).eval(), []
    compress(model, Budget(params=0.8), generator=generator, progress=lambda *said: seen.append(said))
    spec = prepare(model, None, "svd").spec
    named = [at for phase, _, at in seen if phase == "factorize"]
    assert list(dict.fromkeys(named)) == [layer.name for layer in spec.candidates]
