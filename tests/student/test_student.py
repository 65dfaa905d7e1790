"""The student is a model like its teacher, smaller."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import hypercompress
from hypercompress.errors import ModelError
from hypercompress.generator import ANALYTIC
from hypercompress.inspection import inspect
from hypercompress.kinds import LowRankConv, LowRankLinear
from hypercompress.packed.unpacking import replace_module
from hypercompress.running.copying import weights_of
from hypercompress.running.memory import overlapping
from hypercompress.sketch import sketch
from hypercompress.specs import Budget, Factors, Generation, ModelSpec, RankPlan, Unit
from hypercompress.student import Student, build_student, from_pretrained, low_rank_layers
from tests.student.networks import SMALL, Custom, compressed, images, randomised


@pytest.mark.parametrize("network", ["test_resnet", "tied", "low rank"])
def test_a_student_has_all_of_its_memory_for_itself(network: str) -> None:
    teacher = randomised(Custom() if network == "tied" else timm.create_model("test_resnet", pretrained=False, **SMALL))
    if network == "low rank":
        teacher = compressed(teacher).model
    before = [tensor.clone() for tensor in weights_of(teacher)]
    student = compressed(teacher)
    groups = overlapping([*weights_of(teacher), *weights_of(student)])
    assert {groups[id(t)] for t in weights_of(teacher)}.isdisjoint({groups[id(t)] for t in weights_of(student)})
    with torch.no_grad():
        for tensor in weights_of(student):
            tensor.zero_()
    assert all(map(torch.equal, weights_of(teacher), before))


def test_dense_copy_has_the_teachers_structure_and_the_students_outputs(student: Student, teacher: nn.Module) -> None:
    dense = student.to_dense()
    assert repr(dense) == repr(teacher)
    assert {n: t.shape for n, t in dense.state_dict().items()} == {n: t.shape for n, t in teacher.state_dict().items()}
    assert not any(module.training for module in dense.modules())
    with torch.no_grad():
        gap = (dense(images()) - student(images())).abs().max() / student(images()).abs().max()
        double = dense.double()(images().double()) - student.double()(images().double())
    assert gap < 1e-4
    # Only the rounding of one float32 matrix a layer is left when both run in float64.
    assert double.abs().max() < 1e-4 * student(images().double()).abs().max()


def test_student_of_a_student_goes_dense_again(teacher: nn.Module, tmp_path: Path) -> None:
    once = compressed(teacher, 0.7)
    twice = compressed(once.model, 0.6)
    nested = [name for name in twice.ranks if any(name.startswith(other + ".") for other in twice.ranks)]
    assert nested
    dense = twice.to_dense()
    assert repr(dense) == repr(teacher)
    with torch.no_grad():
        torch.testing.assert_close(dense(images()), twice(images()), rtol=1e-3, atol=1e-4)


def test_teacher_is_untouched(teacher: nn.Module) -> None:
    before = copy.deepcopy(teacher.state_dict())
    student = compressed(teacher)
    for parameter in student.parameters():
        parameter.data.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert not low_rank_layers(teacher)


def test_timm_students_keep_timms_interface(student: Student, teacher: nn.Module) -> None:
    x = images()
    features = student.forward_features(x)
    assert features.shape == teacher.forward_features(x).shape
    assert torch.equal(student.forward_head(features), student(x))
    assert student.num_classes == 7
    assert student.pretrained_cfg["architecture"] == "test_resnet"
    assert not student.training
    with pytest.raises(AttributeError, match="nonsense"):
        _ = student.nonsense


def test_what_is_assigned_reaches_the_model_inside(student: Student, tmp_path: Path) -> None:
    student.fc = nn.Linear(student.num_features, 7)
    student.grad_checkpointing = True
    assert student.fc is student.model.fc
    assert student.model.grad_checkpointing
    assert all(name.startswith("model.") for name in student.state_dict())
    with torch.no_grad():
        assert torch.equal(
            student.fc(student.forward_head(student.forward_features(images()), True)), student(images())
        )
        student.save_pretrained(tmp_path / "s")
        assert torch.equal(from_pretrained(tmp_path / "s")(images()), student(images()))


def test_what_is_the_students_own_stays_its_own(student: Student) -> None:
    inner = student.model
    student.report, student.note = {"search": {}}, "mine"
    student.forward = lambda x: x
    assert not {"report", "note", "forward"} & set(vars(inner))
    assert student(3) == 3
    student.model = nn.Linear(2, 2)
    assert student.model.in_features == 2
    named = nn.Linear(2, 2)
    named.report = named.architecture = "of the model"
    assert Student(named).report == {}
    assert named.report == "of the model"


def test_a_frozen_teacher_gives_a_frozen_student(teacher: nn.Module) -> None:
    assert all(parameter.requires_grad for parameter in compressed(teacher).parameters())
    frozen = copy.deepcopy(teacher).requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in compressed(frozen).parameters())


def test_student_trains_and_every_parameter_gets_a_gradient(student: Student) -> None:
    student.train()(images(8)).square().sum().backward()
    silent = [n for n, p in student.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert silent == []
    assert all(float(layer.reduce.weight.grad.abs().sum()) > 0 for layer in low_rank_layers(student.model).values())


def test_flags_and_copies_follow_the_model(teacher: nn.Module) -> None:
    assert compressed(teacher).training is False
    again = copy.deepcopy(compressed(teacher))
    assert again.ranks
    kinds = {type(layer) for layer in low_rank_layers(again.model).values()}
    assert kinds <= {LowRankConv, LowRankLinear}
    assert all(not module.training for module in again.modules())


def test_plan_that_does_not_match_its_factors_is_caught(teacher: nn.Module) -> None:
    spec = inspect(teacher, images())
    generation = ANALYTIC["svd"].generate(spec, sketch(teacher, spec, None), Budget(params=0.6))
    name = next(iter(generation.plan.ranks))
    plan = RankPlan({**generation.plan.ranks, name: generation.plan.ranks[name] + 1}, Unit.PARAMS, 0, 0.0, None)
    wrong = Generation(generation.factors, plan, "svd", 0.0)
    with pytest.raises(ModelError, match=r"received a student of \d+ parameters; expected \d+ by the plan"):
        build_student(teacher, spec, wrong)


def test_changes_of_norms_are_added_to_the_copy_alone(teacher: nn.Module) -> None:
    spec = ModelSpec((), sum(p.numel() for p in teacher.parameters()), 1, ())
    plan = RankPlan({}, Unit.PARAMS, spec.params, 1.0, None)
    name = next(n for n, m in teacher.named_modules() if isinstance(m, nn.BatchNorm2d))
    delta = torch.randn_like(teacher.get_parameter(f"{name}.bias"))
    student = build_student(teacher, spec, Generation(Factors({}, {f"{name}.bias": delta}), plan, "x", 0.0))
    before = teacher.get_parameter(f"{name}.bias")
    assert torch.equal(student.model.get_parameter(f"{name}.bias"), before + delta)


def test_modules_are_replaced_by_dotted_path() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU())
    replace_module(model, "0.0", nn.Identity())
    replace_module(model, "1", nn.Tanh())
    assert [type(m) for m in (model[0][0], model[1])] == [nn.Identity, nn.Tanh]
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.Sequential(layer), nn.Linear(2, 2), layer)
    replace_module(model, "0", nn.Identity())
    assert model[0] is model[1][0] is model[3]
    assert [type(m) for m in (model[0], model[2])] == [nn.Identity, nn.Linear]


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_weights_and_biases_are_frozen_apart(trained: str) -> None:
    teacher = timm.create_model("test_vit", num_classes=10).eval()
    for name, parameter in teacher.named_parameters():
        parameter.requires_grad_(name.endswith("bias") == (trained == "bias"))
    student = hypercompress.compress(teacher, Budget(params=0.5), generator="svd")
    assert student.ranks
    for model in (student, student.to_dense()):
        learns = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        assert learns == {name: name.endswith("bias") == (trained == "bias") for name in learns}


def test_table_of_layers_is_printed(student: Student, capsys: pytest.CaptureFixture[str]) -> None:
    student.print_compression()
    assert "no report: this student was not made by generate" in capsys.readouterr().out


def test_a_copy_of_a_student_is_one_whatever_its_network_copies_by() -> None:
    class Counting(nn.Sequential):
        """Says itself how it is copied, as one must that holds what torch cannot copy."""

        def __deepcopy__(self, memo: dict[int, object]) -> "Counting":
            return Counting(*(copy.deepcopy(module, memo) for module in self))

    student = hypercompress.compress(
        Counting(nn.Linear(32, 32), nn.Linear(32, 32)), Budget(params=0.5), example=torch.randn(2, 32), generator="svd"
    )
    copied = copy.deepcopy(student)
    assert type(copied) is Student
    assert type(copied.model) is Counting
    assert (copied.ranks, copied.report) == (student.ranks, student.report)
    assert torch.equal(copied.state_dict()["model.0.reduce.weight"], student.state_dict()["model.0.reduce.weight"])
