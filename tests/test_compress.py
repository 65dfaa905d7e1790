"""The facade: a student within budget out, by any generator, the same for the same arguments."""

import copy
import gc
import weakref
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from hypercompress.compress import compress, finish
from hypercompress.errors import DataError, GeneratorError
from hypercompress.fidelity import compare
from hypercompress.generator import ANALYTIC, HypernetConfig, HypernetGenerator, Hypernetwork
from hypercompress.generator.start import Start, start_of
from hypercompress.preparation import example, prepare
from hypercompress.preparation.example import INSPECTED, example_of
from hypercompress.report import bytes_of
from hypercompress.running.calibration import require_batches, split_batches
from hypercompress.specs import Budget, Generation, ModelSpec
from tests.small_models import batches, network

CPU = torch.device("cpu")


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
    student = compress(teacher, budget, batches(), generator, final_fit=False)
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


@pytest.mark.parametrize("generator", ["kfac", noisy_hypernet()], ids=["kfac", "hypernet"])
def test_nothing_of_the_teacher_is_kept(generator: Any) -> None:
    """What reads a teacher's weights without a copy holds the array that they lie in."""
    teacher, array = network(), np.ones((32, 144), np.float32)
    array[:] = np.random.default_rng(0).standard_normal(array.shape)
    teacher[4].weight = nn.Parameter(torch.from_numpy(array))
    weights = weakref.ref(array)
    del array
    student = compress(teacher, Budget(params=0.4), batches(), generator)
    assert weights() is not None
    assert "4" in student.ranks
    del teacher, student
    gc.collect()
    assert weights() is None


def test_a_plan_s_directions_are_found_once_and_kept_as_long_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[weakref.ref[Start]] = []

    def counted(*args: Any) -> Start:
        start = start_of(*args)
        found.append(weakref.ref(start))
        return start

    monkeypatch.setattr("hypercompress.generator.hypernetwork.start_of", counted)
    generator, teacher = noisy_hypernet(), network()
    plan = prepare(teacher, batches(), generator)
    for share in (0.4, 0.6):
        finish(plan, Budget(params=share))
    assert len(found) == 1
    finish(prepare(teacher, batches(), generator), Budget(params=0.4))
    finish(plan, Budget(params=0.4))
    assert len(found) == 3  # of the last plan only: each needs much memory
    assert [start() is None for start in found] == [True, True, False]
    del plan
    gc.collect()
    assert found[-1]() is None


def test_same_arguments_same_student() -> None:
    teacher = network()
    a, b = (compress(teacher, Budget(params=0.4), batches(), "kfac", seed=3) for _ in range(2))
    assert all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("17 GB"), RuntimeError("can't allocate memory: 17 GB")], ids=str
)
def test_a_lack_of_memory_is_no_fault_of_the_batch(error: RuntimeError) -> None:
    def exhausted(*_: Any) -> Tensor:
        raise error

    with pytest.raises(RuntimeError, match="17 GB") as told:
        compress(network(), Budget(params=0.5), batches(3), "kfac", forward_fn=exhausted)
    assert told.value is error


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
    assert sizes == 2 * [5, 5, 5, 5, 4]  # batches of 24 samples
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
        ours = finish(plan, Budget(params=share), final_fit=True)
        theirs = compress(teacher, Budget(params=share), batches(), "kfac")
        assert ours.ranks == theirs.ranks
        assert all(torch.equal(t, theirs.state_dict()[name]) for name, t in ours.state_dict().items())


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
