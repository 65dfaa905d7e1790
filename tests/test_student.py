"""The student is a model like its teacher, smaller, and comes back from disk bit for bit."""

import copy
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import hypercompress
from hypercompress.architecture import architecture_of
from hypercompress.copying import weights_of
from hypercompress.errors import ArtefactError, ModelError
from hypercompress.generator import ANALYTIC
from hypercompress.inspection import inspect
from hypercompress.kinds import LowRankConv, LowRankLinear
from hypercompress.memory import overlapping
from hypercompress.report import bytes_of, class_names, params_of, summary, with_new_head, with_new_input_size
from hypercompress.sketch import sketch
from hypercompress.specs import Budget, Factors, Generation, ModelSpec, RankPlan, Unit
from hypercompress.student import Student, build_student, from_pretrained, low_rank_layers
from hypercompress.unpacking import replace_module

SMALL: dict[str, Any] = {"num_classes": 7, "in_chans": 1}


class Custom(nn.Module):
    """A network that timm cannot build, with tied weights and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding="same", padding_mode="circular")
        self.fc = nn.Linear(12 * 16, 24)
        self.inside, self.outside = nn.Linear(24, 24), nn.Linear(24, 24)
        self.outside.weight = self.inside.weight
        self.head = nn.Linear(24, 7)
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.stem(x).tanh(), 4).flatten(1)
        return self.head(self.outside(self.inside(self.fc(x)).tanh())) * self.scale


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def randomised(model: nn.Module) -> nn.Module:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data += 0.05 * torch.rand(tensor.shape)
    return model.eval()


def compressed(model: nn.Module, share: float = 0.6) -> Student:
    spec = inspect(model, images())
    generation = ANALYTIC["svd"].generate(spec, sketch(model, spec, None), Budget(params=share))
    return build_student(model, spec, generation, architecture_of(model))


@pytest.fixture
def teacher() -> nn.Module:
    return randomised(timm.create_model("test_resnet", pretrained=False, **SMALL))


@pytest.fixture
def student(teacher: nn.Module) -> Student:
    return compressed(teacher)


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


def test_loading_and_multiplying_out_leave_the_random_state(student: Student, tmp_path: Path) -> None:
    student.save_pretrained(tmp_path / "s")
    before = torch.get_rng_state()
    hypercompress.from_pretrained(tmp_path / "s").to_dense()
    assert torch.equal(torch.get_rng_state(), before)


def test_layers_factored_on_both_sides_are_restored(teacher: nn.Module, tmp_path: Path) -> None:
    spec = inspect(teacher, images())
    generation = ANALYTIC["kfac"].generate(spec, sketch(teacher, spec, [images(32)]), Budget(params=0.2))
    student = build_student(teacher, spec, generation, architecture_of(teacher))
    student.save_pretrained(tmp_path / "s")
    loaded = hypercompress.from_pretrained(tmp_path / "s")
    assert loaded.input_ranks == student.input_ranks
    assert student.input_ranks
    assert set(student.ranks) - set(student.input_ranks)
    with torch.no_grad():
        assert torch.equal(loaded(images()), student(images()))
        torch.testing.assert_close(loaded.to_dense()(images()), student(images()), rtol=1e-4, atol=1e-4)


@pytest.fixture
def custom() -> Student:
    return compressed(randomised(Custom()))


def test_student_loads_in_a_fresh_process_without_network(student: Student, tmp_path: Path) -> None:
    folder, result = tmp_path / "student", tmp_path / "out.safetensors"
    student.save_pretrained(folder)
    program = (
        "import sys, socket, torch, hypercompress\n"
        "from safetensors.torch import save_file\n"
        "socket.socket.connect = None\n"
        "torch.set_num_threads(1)\n"
        "model = hypercompress.from_pretrained(sys.argv[1])\n"
        "x = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))\n"
        "assert not model.training\n"
        "with torch.no_grad(): save_file({'y': model(x)}, sys.argv[2])\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", program, str(folder), str(result)], check=True, env=environment, timeout=120)
    with torch.no_grad():
        assert torch.equal(load_file(result)["y"], student(images()))


def test_save_then_load_changes_no_bit(student: Student, tmp_path: Path) -> None:
    student.save_pretrained(tmp_path / "a")
    loaded = hypercompress.from_pretrained(tmp_path / "a")
    assert loaded.ranks == student.ranks
    assert loaded.input_ranks == student.input_ranks
    ours, theirs = student.model.state_dict(), loaded.model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    loaded.save_pretrained(tmp_path / "b")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_bytes_on_disk_shrink(teacher: nn.Module, tmp_path: Path) -> None:
    sizes = []
    for share in (1.0, 0.6, 0.4):
        folder = tmp_path / str(share)
        compressed(teacher, share).save_pretrained(folder)
        sizes.append((folder / "model.safetensors").stat().st_size)
    whole = sum(t.numel() * t.element_size() for t in teacher.state_dict().values())
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] < 0.65 * whole
    assert sizes[2] < 0.45 * whole


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


def test_a_new_classifier_is_dense_and_survives_a_reload(student: Student, tmp_path: Path) -> None:
    student.reset_classifier(3)
    assert student(images()).shape == (3, 3)
    assert "fc" not in student.ranks
    student.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(tmp_path / "s")
    assert loaded.num_classes == 3
    with torch.no_grad():
        assert torch.equal(loaded(images()), student.eval()(images()))


REPORTED: dict[str, Any] = {
    "teacher": {"params": 9, "macs": 9, "bytes": 9},
    "student": {"params": 5, "macs": 7, "bytes": 5},
    "budget": {"unit": "params", "target": 0.6, "achieved": 0.6},
    "predicted_kl": 0.5,
    "fidelity": {"agreement": 0.9, "kl": 0.5, "top1_teacher": 0.8, "top1_student": 0.7, "images": 6},
    "measured_on": "held-out calibration images",
    "generator": {"name": "svd", "strength": 0.0},
}


def saved_report(student: Student, folder: Path) -> dict[str, Any]:
    student.save_pretrained(folder, overwrite=True)
    assert json.loads((folder / "report.json").read_text()) == student.report
    return student.report


def test_the_report_has_the_size_of_what_is_saved(student: Student, tmp_path: Path) -> None:
    count = sum(p.numel() for p in student.parameters())
    student.report = {**REPORTED, "student": {"params": count, "macs": 7, "bytes": bytes_of(student)}}
    before = copy.deepcopy(student.report)
    assert saved_report(student, tmp_path / "s") == before
    size = {"params": count, "macs": 7, "bytes": bytes_of(student.half())}
    assert saved_report(student, tmp_path / "s") == {**before, "student": size}, "in half precision it is as near"
    assert size["bytes"] < before["student"]["bytes"]

    student.architecture, student.fc = None, nn.Linear(student.fc.in_features, 3)  # timm would not build it
    report = saved_report(student, tmp_path / "s")
    size = {"params": sum(p.numel() for p in student.parameters()), "macs": None, "bytes": bytes_of(student)}
    assert report["student"] == size
    assert (report["predicted_kl"], report["measured_on"], *report["fidelity"].values()) == (None,) * 7
    assert {key: report[key] for key in ("teacher", "generator")} == {
        key: before[key] for key in ("teacher", "generator")
    }
    assert report["budget"] == {"unit": "params", "target": 0.6, "achieved": None}
    card = (tmp_path / "s" / "README.md").read_text()
    assert f"| student | {size['params']:,} | - | {size['bytes']:,} |" in card
    assert "Fidelity" not in card
    assert f"params: 9 -> {size['params']:,} (" in summary(report)
    assert "macs:" not in summary(report)


def test_a_new_classifier_as_large_as_the_old_one_is_another(student: Student, tmp_path: Path) -> None:
    student.report = {
        **REPORTED,
        "student": {**REPORTED["student"], "params": sum(p.numel() for p in student.parameters())},
    }
    student.reset_classifier(7)
    report = saved_report(student, tmp_path / "s")
    assert report["student"]["macs"] == 7
    assert (report["predicted_kl"], *report["fidelity"].values()) == (None,) * 6


def test_other_outputs_than_the_names_in_the_report(student: Student, tmp_path: Path) -> None:
    count = sum(p.numel() for p in student.parameters())
    student.report = {**REPORTED, "student": {**REPORTED["student"], "params": count}, "classes": ["a", "b"]}
    report = saved_report(student, tmp_path / "s")
    assert (report["predicted_kl"], report["classes"]) == (None, None)
    assert report["budget"] == REPORTED["budget"]


@pytest.mark.parametrize(("unit", "achieved"), [("params", 0.6), ("macs", None), ("latency", None)])
def test_what_a_new_input_size_changes(unit: str, achieved: float | None, student: Student) -> None:
    """Of a network that has as many parameters as before."""
    count = sum(p.numel() for p in student.parameters())
    made = {**REPORTED["student"], "params": count}
    before = {
        **REPORTED,
        "student": made,
        "budget": {**REPORTED["budget"], "unit": unit},
        "latency": {"teacher_ms": 1.0},
    }
    report = with_new_input_size({**before, "classes": ["a"] * student.num_classes}, student)
    assert (report["teacher"]["macs"], report["student"]["macs"], report["latency"]) == (None, None, None)
    assert report["budget"] == {"unit": unit, "target": 0.6, "achieved": achieved}
    assert (report["predicted_kl"], report["classes"]) == (None, ["a"] * student.num_classes)
    assert with_new_input_size({}, student) == {}


def test_steps_of_ones_own_are_counted(student: Student, tmp_path: Path) -> None:
    student.report = {**REPORTED, "student": {**REPORTED["student"], "params": params_of(student)}}
    student.count_steps(3)
    student.count_steps(4)
    report = saved_report(student, tmp_path / "s")
    assert (report["distilled_steps"], report["measured_on"], *report["fidelity"].values()) == (7,) + (None,) * 6
    assert "Trained for 7 steps after that" in (tmp_path / "s" / "README.md").read_text()
    student.report = {}
    student.count_steps(3)
    assert saved_report(student, tmp_path / "s") == {}, "of unknown origin"


def test_a_new_classifier_has_no_names(student: Student, tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    student.report = {**REPORTED, "classes": names}
    student.reset_classifier(3)
    assert saved_report(student, tmp_path / "s")["classes"] is None
    moved = {**REPORTED, "transfer": {"classes": names, "ways": 3}}
    assert with_new_head(moved, student)["transfer"] == {"classes": None, "ways": 3}
    assert class_names(from_pretrained(tmp_path / "s").report) == []


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


def test_a_new_pooling_survives_a_reload(student: Student, tmp_path: Path) -> None:
    student.reset_classifier(3, "max")
    student.save_pretrained(tmp_path / "s")
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "s")(images()), student.eval()(images()))


def test_a_frozen_teacher_gives_a_frozen_student(teacher: nn.Module) -> None:
    assert all(parameter.requires_grad for parameter in compressed(teacher).parameters())
    frozen = copy.deepcopy(teacher).requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in compressed(frozen).parameters())


def test_half_precision_comes_back(student: Student, tmp_path: Path) -> None:
    half = copy.deepcopy(student).to(torch.bfloat16)
    half.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(tmp_path / "s")
    assert {tensor.dtype for tensor in loaded.state_dict().values() if tensor.is_floating_point()} == {torch.bfloat16}
    with torch.no_grad():
        assert torch.equal(loaded(images().bfloat16()), half(images().bfloat16()))


AS_SAVED = "expected the folder as it was saved; copy it again"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("ranks", [1, 2], AS_SAVED),
        ("ranks", {"fc": 0}, AS_SAVED),
        ("ranks", {"fc": "2"}, AS_SAVED),
        ("ranks", {"fc": 2**40}, AS_SAVED),
        ("input_ranks", {"layer1.0.conv1": 0}, AS_SAVED),
        ("input_ranks", {"fc": 3}, AS_SAVED),
        ("unpacked", "fc", AS_SAVED),
        ("unpacked", {"fc": 1}, AS_SAVED),
        ("input_ranks", {"layer1": 3}, AS_SAVED),
        ("architecture", "resnet18", AS_SAVED),
        ("architecture", {"name": "resnet18"}, AS_SAVED),
        ("architecture", {"name": 3, "args": {}, "pretrained_cfg": {}}, AS_SAVED),
    ],
    ids=str,
)
def test_a_config_that_somebody_wrote_is_refused(
    student: Student, tmp_path: Path, key: str, value: Any, expected: str
) -> None:
    folder = tmp_path / "s"
    student.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ArtefactError, match=expected):
        from_pretrained(folder)


def test_custom_network_needs_its_skeleton(custom: Student, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    custom.save_pretrained(folder)
    with pytest.raises(ArtefactError, match=r"expected its dense network; pass skeleton=YourModel\(\)"):
        from_pretrained(folder)
    skeleton = Custom()
    before = copy.deepcopy(skeleton.state_dict())
    loaded = from_pretrained(folder, skeleton)
    with torch.no_grad():
        assert torch.equal(loaded(images()), custom(images()))
    assert all(torch.equal(before[name], tensor) for name, tensor in skeleton.state_dict().items())
    with pytest.raises(ArtefactError, match="received a plan that factors fc; expected a layer of a known kind there"):
        from_pretrained(folder, nn.Sequential())


def test_tied_weights_are_stored_once_and_tied_again(custom: Student, tmp_path: Path) -> None:
    assert not {"inside", "outside"} & set(custom.ranks)
    custom.save_pretrained(tmp_path / "s")
    stored = load_file(tmp_path / "s" / "model.safetensors")
    assert "inside.weight" in stored
    assert "outside.weight" not in stored
    assert json.loads((tmp_path / "s" / "config.json").read_text())["aliases"] == {"outside.weight": "inside.weight"}
    loaded = from_pretrained(tmp_path / "s", Custom())
    assert loaded.model.outside.weight is loaded.model.inside.weight


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


def vit_student() -> Student:
    torch.manual_seed(0)
    teacher = timm.create_model("test_vit", num_classes=10).eval()
    return hypercompress.compress(teacher, Budget(params=0.5), generator="svd")


def test_a_changed_input_size_survives_a_reload(tmp_path: Path) -> None:
    student, x = vit_student(), torch.randn(2, 3, 128, 96)
    student.set_input_size(img_size=(128, 96))
    report = saved_report(student, tmp_path / "s")
    assert (report["student"]["macs"], report["predicted_kl"]) == (None, None)
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "s")(x), student(x))


def test_what_timm_builds_no_more_is_saved_for_a_skeleton(tmp_path: Path) -> None:
    student = vit_student()
    student.reset_classifier(7, "avg")  # timm keeps the norm that create_model(global_pool="avg") moves
    with pytest.warns(UserWarning, match=r"received a student with other .*norm.* than timm builds in test_vit"):
        student.save_pretrained(tmp_path / "s")
    with pytest.raises(ArtefactError, match="pass skeleton=YourModel"):
        from_pretrained(tmp_path / "s")
    skeleton, x = timm.create_model("test_vit", num_classes=10), torch.randn(2, 3, 160, 160)
    skeleton.reset_classifier(7, "avg")
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "s", skeleton)(x), student(x))


def test_what_is_held_beside_the_network_is_named_when_it_is_not_saved(student: Student, tmp_path: Path) -> None:
    student = copy.deepcopy(student)
    student.extra = nn.Linear(2, 2)
    with pytest.warns(UserWarning, match=r"holds extra.weight, extra.bias beside .*; set it on student.model"):
        student.save_pretrained(tmp_path / "s")
    assert not any("extra" in name for name in from_pretrained(tmp_path / "s").state_dict())


def set_stride(model: nn.Module) -> None:
    model.get_submodule("conv1.0" if isinstance(model.conv1, nn.Sequential) else "conv1").stride = (1, 1)


@pytest.mark.parametrize(
    ("network", "change"),
    [
        ("test_resnet", lambda model: setattr(model, "maxpool", nn.Identity())),
        ("test_resnet", set_stride),
        ("test_resnet", lambda model: model.reset_classifier(7, "max")),
        ("test_vit", lambda model: setattr(model, "global_pool", "avg")),
        ("test_vit", lambda model: setattr(model.blocks[0].norm1, "eps", 0.1)),
    ],
    ids=["module", "stride", "pooling", "setting", "eps"],
)
def test_a_change_without_parameters_needs_a_skeleton_too(
    network: str, change: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    teacher = timm.create_model(network, num_classes=7).eval()
    student = hypercompress.compress(teacher, Budget(params=0.5), generator="svd")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student.save_pretrained(tmp_path / "as it was")
    change(student.model)
    with pytest.warns(UserWarning, match=f"than timm builds in {network}"):
        student.save_pretrained(tmp_path / "s")
    change(teacher)
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(from_pretrained(tmp_path / "s", teacher)(x), student(x))


def test_a_student_of_a_student_is_one_of_the_dense_network(tmp_path: Path) -> None:
    first = vit_student()
    student = hypercompress.compress(first, Budget(params=0.4), generator="svd")
    assert student.report["teacher"]["params"] == first.report["teacher"]["params"]
    assert student.architecture == first.architecture
    student.save_pretrained(tmp_path / "s")
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "s")(x), student(x))
