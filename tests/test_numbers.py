"""Outputs [b, k] that are k numbers, as of a regression, and not the logits of k classes."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from hypercompress import Budget, Student, compress, from_pretrained
from hypercompress.cli.evaluate import measured
from hypercompress.errors import GeneratorError
from hypercompress.running.calling import call_model
from hypercompress.running.outputs import as_numbers, logits_of, regressed

X = torch.randn(256, 12, generator=torch.Generator().manual_seed(0))


def regression() -> nn.Module:
    """Four numbers that move together far more than apart, as the corners of a box in an image do."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(12, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 4))
    with torch.no_grad():
        model[4].weight.mul_(0.2).add_(torch.randn(1, 48))
    return model.eval()


def batches(targets: Tensor | None) -> list[Any]:
    """Images, with targets if given."""
    return list(X.split(32)) if targets is None else list(zip(X.split(32), targets.split(32), strict=True))


def off(model: nn.Module, student: Student) -> float:
    """Root mean square of the student's error."""
    with torch.no_grad():
        return float((student(X) - model(X)).square().mean().sqrt())


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(X)
    return found


@pytest.mark.parametrize("shape", [(3, 5), (3, 7, 5), (3, 5, 2, 4)])
def test_any_shape_can_be_read_as_numbers(shape: tuple[int, ...]) -> None:
    output = torch.arange(float(torch.tensor(shape).prod())).view(shape)
    read = as_numbers(lambda model, batch: batch)(nn.Identity(), output)
    assert logits_of(output) is not None
    assert logits_of(read) is None
    assert torch.equal(read.flatten(1), output.flatten(1))


@pytest.mark.parametrize("generator", ["kfac", "auto"])
def test_a_regression_keeps_what_all_its_numbers_have_in_common(generator: str) -> None:
    model, budget = regression(), Budget(params=0.4)
    classes = compress(model, budget, batches(None), generator)
    numbers = compress(model, budget, batches(None), generator, outputs="numbers")
    assert off(model, numbers) < 0.6 * off(model, classes)
    assert classes.report["fidelity"]["agreement"] is not None
    assert numbers.report["fidelity"]["agreement"] is None
    assert "outputs" not in classes.report
    assert numbers.report["outputs"] == "numbers"


def test_targets_of_the_outputs_shape_say_that_they_are_numbers() -> None:
    model = regression()
    told, found = (
        compress(model, Budget(params=0.4), batches(targets), "kfac", outputs=how)
        for targets, how in ((None, "numbers"), (outputs(model) + 0.1, "auto"))
    )
    assert found.report["outputs"] == "numbers"
    for one, other in zip(told.parameters(), found.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "targets",
    [
        torch.randint(0, 4, (256,), generator=torch.Generator().manual_seed(0)),
        torch.randn(256, 4, generator=torch.Generator().manual_seed(0)).softmax(-1),  # of a mixup
        torch.randn(256, 3, generator=torch.Generator().manual_seed(0)),
        torch.rand(256, generator=torch.Generator().manual_seed(0)),
    ],
    ids=["classes", "probabilities", "another shape", "one number"],
)
def test_other_targets_leave_them_classes(targets: Tensor) -> None:
    student = compress(regression(), Budget(params=0.4), batches(targets), "kfac")
    assert "outputs" not in student.report


def test_several_labels_at_once_are_numbers_and_classes_can_be_asked_for() -> None:
    model = regression()
    several = (outputs(model) > 0).float()
    assert regressed([several], outputs(model))
    assert "outputs" not in compress(model, Budget(params=0.4), batches(several), "kfac", outputs="classes").report


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.uint16])
def test_several_whole_labels_at_once_are_numbers(dtype: torch.dtype) -> None:
    """They were read as classes, which lost what all outputs have in common."""
    model = regression()
    several = outputs(model) > 0
    told, found = (
        compress(model, Budget(params=0.4), batches(targets), "kfac").state_dict()
        for targets in (several.float(), several.to(dtype))
    )
    assert all(torch.equal(found[name], told[name]) for name in told)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_rows_with_one_label_each_do_not_hide_the_others(dtype: torch.dtype) -> None:
    one = nn.functional.one_hot(torch.arange(256) % 4).to(dtype)
    several = one.clone()
    several[200] = 1
    for targets, read in ((one, False), (several, True)):
        assert ("outputs" in compress(regression(), Budget(params=0.4), batches(targets), "kfac").report) == read


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_samples_without_a_label_say_nothing(dtype: torch.dtype) -> None:
    """A single one among one-hot rows made a classifier a regression."""
    labels = nn.functional.one_hot(torch.arange(256) % 4)
    labels[[3, 200]] = 0
    labels[32:64] = 0  # a whole batch
    assert "outputs" not in compress(regression(), Budget(params=0.4), batches(labels.to(dtype)), "kfac").report
    labels[201, :2] = 1
    assert "outputs" in compress(regression(), Budget(params=0.4), batches(labels.to(dtype)), "kfac").report


@pytest.mark.parametrize(
    ("rows", "read"),
    [
        ([[[0, 0, 0], [0, 0, 0]], [[0, 0, 0]]], True),
        ([[[0, 0, 0], [0, 1, 0]], [[0, 0, 0]]], False),
        ([[[0, 0, 0]], [[0.2, 0.3, 0.5]]], False),
        ([[[0, 1, 0]], [[0, 0, 0.4]]], True),
        ([[[0, 1, 0]], [[1, 1, -1]]], True),
        ([[[0, 1, 0]], [[3, 0, 0]]], True),  # counts
        ([[[0, 1, 0]], [[float("nan"), 0, 1]]], True),
        ([[[0, 1]], [[3, 1]]], False),  # of other shapes than the outputs
        ([], False),
    ],
)
def test_which_rows_are_numbers(rows: list[Any], read: bool) -> None:
    assert regressed(map(torch.tensor, rows), torch.zeros(5, 3)) == read


def test_maps_of_classes_leave_outputs_classes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 4, 1)).eval()
    images = torch.randn(24, 3, 4, 4)
    labels = torch.randint(0, 4, (24, 4, 4))
    data = list(zip(images.split(8), labels.split(8), strict=True))
    assert "outputs" not in compress(model, Budget(params=0.7), data, "kfac").report
    data = [(x, nn.functional.one_hot(y, 4).movedim(-1, 1)) for x, y in data]
    assert "outputs" not in compress(model, Budget(params=0.7), data, "kfac").report
    data[0][1][1, :, 2] = 0  # void pixels
    assert "outputs" not in compress(model, Budget(params=0.7), data, "kfac").report
    data = [(x, torch.ones_like(y)) for x, y in data]
    assert compress(model, Budget(params=0.7), data, "kfac").report["outputs"] == "numbers"


class Features(nn.Module):
    """As a timm model that was built with ``num_classes=0``, and keeps that number whatever head it is given."""

    num_classes = 0

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.layers, self.head = regression(), head

    def get_classifier(self) -> Any:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x)
        return self.head(features) if isinstance(self.head, nn.Linear) else features


class Asking(Features):
    """As timm's EfficientViT-M: of its head it gives a layer inside."""

    def get_classifier(self) -> Any:
        return self.head.linear


@pytest.mark.parametrize(
    "model",
    [
        Features(nn.Identity()),
        Features((nn.Identity(), nn.Identity())),
        Features(nn.Sequential(nn.Dropout(), nn.Identity())),
        Asking(nn.Identity()),
    ],
    ids=["one", "two", "with dropout", "a layer inside"],
)
def test_a_model_without_a_head_gives_numbers(model: nn.Module) -> None:
    model, budget = model.eval(), Budget(params=0.4)
    assert compress(model, budget, batches(None), "kfac").report["outputs"] == "numbers"
    assert "outputs" not in compress(model, budget, batches(None), "kfac", outputs="classes").report
    read = compress(model, budget, batches(None), "kfac", forward_fn=lambda m, x: m(x))
    assert "outputs" not in read.report  # which may read classes in features


def test_whole_labels_of_a_model_without_a_head_are_its_classes() -> None:
    """The head may lie where ``get_classifier`` does not look."""
    model, budget, labels = Features(nn.Identity()).eval(), Budget(params=0.4), torch.arange(256) % 4
    assert "outputs" not in compress(model, budget, batches(labels), "kfac").report
    told = compress(model, budget, batches(labels), "kfac", outputs="numbers")
    assert told.report["outputs"] == "numbers"
    real = compress(model, budget, batches(labels / 7), "kfac")  # which name none
    assert real.report["outputs"] == "numbers"


@pytest.mark.parametrize("labels", [None, torch.arange(256) % 10], ids=["no labels", "labels"])
def test_a_head_of_the_user_s_own_makes_classes(labels: Tensor | None) -> None:
    """Such models were compressed as regressions, for a number that nobody had brought up to date."""
    for model in (Features(nn.Linear(4, 10)), Asking(nn.Linear(4, 10))):
        assert "outputs" not in compress(model.eval(), Budget(params=0.4), batches(labels), "kfac").report


def test_a_network_of_timm_s_with_a_head_of_the_user_s_own() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=0, in_chans=1).eval()
    data = list(torch.randn(8, 1, 32, 32).split(2))
    assert compress(model, Budget(params=0.6), data, "svd").report["outputs"] == "numbers"
    model.fc = nn.Linear(model.num_features, 10)
    assert model.num_classes == 0
    assert "outputs" not in compress(model, Budget(params=0.6), data, "svd").report


def test_a_student_is_measured_as_it_was_made(tmp_path: Path) -> None:
    model = regression()
    student = compress(model, Budget(params=0.4), batches(None), "kfac", outputs="numbers")
    found = measured(student, model, [(x,) for x in X.split(32)])
    assert found["agreement"] is None
    assert found["kl"] == pytest.approx(4 * off(model, student) ** 2 / 2, rel=1e-4)
    student.save_pretrained(tmp_path / "student")
    assert from_pretrained(tmp_path / "student", skeleton=regression()).report["outputs"] == "numbers"


def test_a_reading_that_there_is_not() -> None:
    with pytest.raises(GeneratorError, match=r"received outputs='logits'; expected one of auto, classes, numbers"):
        compress(regression(), Budget(params=0.4), batches(None), outputs="logits")


def test_a_function_of_the_user_s_own_is_read_as_numbers_too() -> None:
    student = compress(
        regression(),
        Budget(params=0.4),
        [{"x": x} for x in X.split(32)],
        "kfac",
        forward_fn=lambda model, batch: call_model(model, batch["x"]),
        outputs="numbers",
    )
    assert student.report["fidelity"]["agreement"] is None
