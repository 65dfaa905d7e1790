"""One measured student says how far all predictions are off."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hypercompress.compress import finish
from hypercompress.errors import GeneratorError
from hypercompress.fidelity import compare
from hypercompress.generator import ANALYTIC
from hypercompress.preparation import Plan, prepare
from hypercompress.probe import PROBE, kl_scale
from hypercompress.specs import Budget, KlScale, Refit

TOKENS, WIDTH, CLASSES = 16, 32, 24


class Pooled(nn.Module):
    """A linear layer on every token, whose outputs are averaged: the simplest network with shared weights."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.head(self.inner(x).mean(1))
        return pooled


def plan_of(*, alike: bool, inner: nn.Module | None = None, sizes: tuple[int, ...] = (64,) * 8) -> Plan:
    """Prepared with tokens that are alike within a sample, or drawn one by one."""
    torch.manual_seed(0)
    model = Pooled(inner or nn.Linear(WIDTH, WIDTH)).eval()

    def batch(size: int) -> Tensor:
        tokens = torch.randn(size, 1, WIDTH).expand(-1, TOKENS, -1) if alike else torch.randn(size, TOKENS, WIDTH)
        return 3 * tokens.contiguous()

    return prepare(model, [batch(size) for size in sizes], "kfac")


def test_tokens_that_are_alike_are_taken_for_independent_and_the_scale_says_by_how_much() -> None:
    # One gradient a token, TOKENS times the same: its outer product is TOKENS times what independent ones would give.
    assert kl_scale(plan_of(alike=True)).generated == pytest.approx(TOKENS, rel=0.35)
    assert kl_scale(plan_of(alike=False)).generated == pytest.approx(1, rel=0.35)


def test_the_scaled_prediction_holds_for_students_that_were_not_measured() -> None:
    plan = plan_of(alike=True)
    plan, predictions = replace(plan, kl_scale=kl_scale(plan)), []
    for share in (0.75, 0.9, 0.95):
        student = finish(plan, Budget(params=share), refit=False)
        assert plan.split is not None
        kl = compare(plan.teacher, student, plan.split.confirm).kl
        predictions.append((student.report["predicted_kl"], kl))
    judged = [(predicted, kl) for predicted, kl in predictions if kl < 0.1]
    assert len(judged) >= 2
    assert all(0.5 <= predicted / kl <= 2 for predicted, kl in judged), predictions


def test_the_student_that_is_measured_is_the_one_nearest_the_probe() -> None:
    plan = plan_of(alike=False)
    known = ANALYTIC["kfac"].directions(plan.spec, plan.sketches)
    assert kl_scale(plan, known) == kl_scale(plan)
    assert plan.split is not None
    shares = torch.linspace(0.4, 0.99, 60).tolist()
    made = [ANALYTIC["kfac"].generate(plan.spec, plan.sketches, Budget(params=s)).plan.predicted_kl for s in shares]
    assert min(made, key=lambda kl: abs((kl or 0) - PROBE)) == pytest.approx(PROBE, rel=0.9)  # there is such a student


def test_a_report_says_the_scaled_prediction() -> None:
    plan = plan_of(alike=False)
    plain, scaled = (
        finish(replace(plan, kl_scale=KlScale(scale, 99.0)), Budget(params=0.6), refit=False).report["predicted_kl"]
        for scale in (1.0, 3.0)
    )
    assert scaled == pytest.approx(3 * plain)


def test_a_refitted_student_has_a_scale_of_its_own() -> None:
    """It is measured as it is refitted, and multiplies the prediction of students that are."""
    plan = plan_of(alike=False, inner=nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)))
    scale = kl_scale(plan)
    assert scale.refitted < 0.95 * scale.generated
    assert scale.best == scale.refitted
    alone = kl_scale(plan, refit=False)
    assert alone == KlScale(scale.generated, scale.generated)
    assert [scale.of(refit) for refit in Refit] == [scale.generated, scale.refitted, scale.refitted]
    plain, told = (finish(replace(plan, kl_scale=s), Budget(params=0.4)).report for s in (KlScale(), scale))
    assert told["refitted"] == "both"
    assert told["predicted_kl"] == pytest.approx(scale.refitted * plain["predicted_kl"])


def test_nothing_to_measure_leaves_predictions_as_they_are() -> None:
    plan = plan_of(alike=True)
    zero = {
        name: replace(sketch, curvature=replace(sketch.curvature, fisher=torch.zeros_like(sketch.curvature.fisher)))
        for name, sketch in plan.sketches.items()
    }
    assert kl_scale(replace(plan, sketches=zero)) == KlScale()


def test_without_images_there_is_nothing_to_measure_on() -> None:
    with pytest.raises(GeneratorError, match="without calibration data"):
        kl_scale(replace(plan_of(alike=True), split=None))
