"""timm's optimizers treat what a student learns as they treat the layers that it was before."""

from typing import Any

import pytest
import timm
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

from hypercompress.student import Student
from tests.student.networks import SMALL, compressed

OPTIONS: dict[str, Any] = {"opt": "adamw", "lr": 1.0, "weight_decay": 0.05}


def treatment(model: nn.Module, **options: Any) -> dict[str, tuple[float, float]]:
    """Weight decay and scale of the learning rate of each parameter by name."""
    groups = create_optimizer_v2(model, **OPTIONS, **options).param_groups
    found = {id(p): (group["weight_decay"], group.get("lr_scale", 1.0)) for group in groups for p in group["params"]}
    return {name: found[id(parameter)] for name, parameter in model.named_parameters()}


def in_dense(name: str, dense: nn.Module) -> str:
    """The parameter of the dense model that this one of a student belongs to."""
    parts, leaf = name.removeprefix("model.").split(".")[:-1], name.rpartition(".")[2]
    layers = dict(dense.named_modules())
    while ".".join(parts) not in layers:
        parts.pop()
    return ".".join([*parts, leaf])


@pytest.mark.parametrize("options", [{}, {"layer_decay": 0.7}], ids=["weight decay", "layer decay"])
@pytest.mark.parametrize("network", ["test_vit", "test_resnet", "test_convnext"])
def test_decay_and_rates_are_those_of_the_dense_layers(network: str, options: dict[str, float]) -> None:
    size = {"img_size": 32} if network == "test_vit" else {}
    teacher = timm.create_model(network, pretrained=False, **SMALL, **size).eval()
    student, dense = compressed(teacher, 0.5), treatment(teacher, **options)
    assert student.ranks
    assert len(set(dense.values())) > (3 if options else 1)
    assert treatment(student, **options) == {n: dense[in_dense(n, teacher)] for n, _ in student.named_parameters()}
    assert treatment(Student(student), **options) == {f"model.{n}": t for n, t in treatment(student, **options).items()}


def test_groups_may_come_in_every_form_that_timm_takes() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.last = nn.Linear(2, 2), nn.Linear(2, 2)
            self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
            self.norm = nn.LayerNorm(2)
            self.form: Any = None

        def group_matcher(self, coarse: bool = False) -> Any:
            return self.form

    model = Grouped()
    student = Student(model)
    for form in (
        {"stem": r"^rope|^stem", "none": None, "blocks": [(r"^blocks\.(\d+)", None), (r"^[^a-mo-z]orm", (99999,))]},
        lambda name: 0 if name.startswith("stem") else (1, 2) if name.startswith("blocks.1") else float("inf"),
    ):
        model.form = form
        groups = group_parameters(model, model.group_matcher(), reverse=True)
        assert len(set(groups.values())) > 2
        own = group_parameters(student, student.group_matcher(coarse=True), reverse=True)
        assert own == {f"model.{name}": group for name, group in groups.items()}


def test_a_student_has_no_groups_where_its_model_has_none() -> None:
    student = Student(nn.Linear(2, 2))
    assert not hasattr(student, "no_weight_decay")
    assert not hasattr(student, "group_matcher")
