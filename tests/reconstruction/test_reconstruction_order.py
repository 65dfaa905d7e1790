"""Reconstruction of any forward pass: layers that are called oddly, errors on either side, other orders, autocast."""

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

from hypercompress.fidelity import compare
from hypercompress.generator import ANALYTIC
from hypercompress.inspection import inspect
from hypercompress.reconstruction import reconstruct
from hypercompress.sketch import sketch
from hypercompress.specs import Budget
from hypercompress.student import build_student, low_rank_layers
from tests.reconstructed import images, made, network
from tests.small_models import Experts


class Twice(nn.Module):
    """One layer called two times, and one that runs on a table without a batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 10, generator=torch.Generator().manual_seed(0)))
        self.first, self.again, self.place = nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu() + self.place(self.table).mean(0)
        return self.again(self.again(x).relu())


def test_layers_called_twice_or_without_a_batch_axis() -> None:
    torch.manual_seed(0)
    teacher, x = Twice().eval(), torch.randn(200, 10)
    spec, sketches, student = made(teacher, x, 0.5)
    assert len(student.ranks) == 3
    before = copy.deepcopy(student.state_dict())
    assert reconstruct(teacher, student, spec, sketches, x) == {"first": "both", "again": "none", "place": "both"}
    same = {key: torch.equal(before[key], value) for key, value in student.state_dict().items() if "expand.w" in key}
    assert same == {
        "model.first.expand.weight": False,
        "model.again.expand.weight": True,  # one fit cannot suit both of its inputs
        "model.place.expand.weight": False,
    }


@pytest.mark.parametrize("broken", ["teacher", "student"])
def test_an_error_on_either_side_surfaces_and_no_thread_stays(broken: str) -> None:
    teacher, x = network(), images()
    spec, sketches, student = made(teacher, x, 0.4)
    threads = threading.active_count()

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        output: Tensor = model(batch)
        if (model is teacher) is (broken == "teacher"):
            raise RuntimeError("out of luck")
        return output

    def early(model: nn.Module, batch: Tensor) -> Tensor:
        if (model is teacher) is (broken == "teacher"):
            raise RuntimeError("out of luck")
        output: Tensor = model(batch)
        return output

    with pytest.raises(RuntimeError, match="out of luck"):
        reconstruct(teacher, student, spec, sketches, x, early)
    if broken == "student":
        with pytest.raises(RuntimeError, match="out of luck"):
            reconstruct(teacher, student, spec, sketches, x, forward)
    assert threading.active_count() == threads
    assert not any(module._forward_hooks for model in (teacher, student) for module in model.modules())


@pytest.mark.parametrize("both", [True, False])
def test_what_the_teacher_writes_in_place_changes_nothing(both: bool) -> None:
    x, students = images(), []
    for inplace in (False, True):
        teacher = network()
        for place in (2, 4, 7):
            teacher[place] = nn.ReLU(inplace=inplace)
        spec, sketches, student = made(teacher, x, 0.35)
        reconstruct(teacher, student, spec, sketches, x, both=both)
        students.append(student.state_dict())
    assert {"model.0.expand.weight", "model.3.expand.weight", "model.6.expand.weight"} <= students[0].keys()
    for key, value in students[0].items():
        assert torch.equal(value, students[1][key]), key


def test_layers_that_only_the_student_runs_stay_as_they_are() -> None:
    teacher, x = network(), images()
    spec, sketches, student = made(teacher, x, 0.35)
    before = student.model[:2](x)

    def skipping(model: nn.Module, batch: Tensor) -> Tensor:
        return model[3:](batch[:, :1].repeat(1, 24, 1, 1)) if model is teacher else student.model(batch)

    assert reconstruct(teacher, student, spec, sketches, x, skipping) == {"0": "none", "3": "both", "6": "both"}
    torch.testing.assert_close(student.model[:2](x), before)


def halved(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        output: Tensor = model(batch)
    return output


@pytest.mark.parametrize("way", ["outside", "inside"])
def test_autocast_changes_a_students_fidelity_by_rounding_only(way: str) -> None:
    """Around everything, or in a ``forward_fn``: no sum in bfloat16, no cast of factors that are there no more."""
    teacher, x, held_out = network().float(), images().float(), images(seed=2).float()
    forward, kls = (halved if way == "inside" else None), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled and way == "outside"):
            spec = inspect(teacher, x[:2])
            sketches = sketch(teacher, spec, x.split(32), forward_fn=forward if enabled else None)
            generation = ANALYTIC["kfac"].generate(spec, sketches, Budget(params=0.35))
            student = build_student(teacher, spec, generation)
            student(x[:2])
            fitted = reconstruct(teacher, student, spec, sketches, x, forward if enabled else None)
        assert fitted == {"0": "both", "3": "both", "6": "both"}
        kls.append(compare(teacher, student, [held_out]).kl)
    assert kls[1] == pytest.approx(kls[0], rel=0.05)


class Routed(nn.Module):
    """The first layer's sign chooses which samples the second one sees."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.expert, self.last = nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        chosen = (h[:, 0] > 0).nonzero()[:, 0]
        return self.last(h.index_add(0, chosen, self.expert(h[chosen]).relu()))


def test_a_layer_that_sees_other_samples_than_its_teachers_stays_as_it_is() -> None:
    torch.manual_seed(0)
    teacher, x = Routed().double().eval(), torch.randn(200, 10, dtype=torch.float64)
    spec, sketches, student = made(teacher, x, 0.5)
    before = copy.deepcopy(low_rank_layers(student.model)["expert"])
    fitted = reconstruct(teacher, student, spec, sketches, x)
    assert fitted == {"first": "both", "expert": "none", "last": "both"}
    torch.testing.assert_close(low_rank_layers(student.model)["expert"].weight * 1.0, before.weight * 1.0)


@pytest.mark.parametrize("without", ["teacher", "student"])
def test_experts_that_only_one_of_the_two_runs_stay_as_they_are(without: str) -> None:
    torch.manual_seed(0)
    teacher, x = Experts(6, 48).double().eval(), torch.randn(200, 8, dtype=torch.float64)
    spec, sketches, student = made(teacher, x, 0.7)
    missing = {name for name in student.ranks if name.startswith("experts.")}
    assert len(missing) > 2
    with torch.no_grad():  # as if all samples of the batch went to the last expert
        (teacher if without == "teacher" else student.model).gate.bias.copy_(100 * torch.arange(6))
    before = {name: student.model.get_submodule(name).weight * 1.0 for name in missing}
    fitted = reconstruct(teacher, student, spec, sketches, x)
    assert {name for name in missing if fitted[name] != "none"} == set()
    assert fitted["last"] == "both"
    for name in missing:
        torch.testing.assert_close(student.model.get_submodule(name).weight * 1.0, before[name])


def test_a_model_that_runs_in_chunks_stays_as_it_is() -> None:
    """The example was one chunk, the batch is three: what the norms took over comes back with the factors."""
    teacher, x = network(), images()

    def chunked(model: nn.Module, batch: Tensor) -> Tensor:
        return torch.cat([model(part) for part in batch.split(32)])

    spec, sketches, student = made(teacher, x[:32], 0.35)
    expected = student(x)
    assert set(reconstruct(teacher, student, spec, sketches, x, chunked).values()) == {"none"}
    torch.testing.assert_close(student(x), expected)


class Called(nn.Module):
    """A layer called with a keyword, and one that reads a single vector."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(10, generator=torch.Generator().manual_seed(0)))
        self.first, self.named, self.vector = nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.named(input=self.first(x).relu()) + self.vector(self.token)


def test_a_layer_called_with_a_keyword_and_one_on_a_single_vector() -> None:
    torch.manual_seed(0)
    teacher, x = Called().double().eval(), torch.randn(200, 10, dtype=torch.float64)
    spec, sketches, student = made(teacher, x, 0.5)
    fitted = reconstruct(teacher, student, spec, sketches, x)
    assert fitted == {"first": "both", "named": "both", "vector": "outputs"}
    assert student(x).isfinite().all()
