"""One contract over every small architecture of timm: whatever the family, every promise holds.

The models are made by name; nothing is downloaded. `tests/battery/` takes the contract to every module of timm.
"""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from hypercompress.specs import Budget, Status
from tests.battery.contract import Run, Subject, check, macs, output, reachable, student_of

NAMES = sorted(timm.list_models("test_*"))
# Models of which a part cannot be factored -> the classes of those modules.
UNSUPPORTED = {
    "test_coatnet": {"RelPosBias"},  # a table
    "test_maxvit": {"RelPosBias"},
    "test_vit": {"VisionTransformer"},  # the table of position embeddings
    "test_vit2": {"VisionTransformer"},
    "test_vit3": {"VisionTransformer"},
    "test_vit4": {"VisionTransformer"},
}
BUDGETS = (Budget(params=0.7), Budget(macs=0.75))
RUNS = [Run("svd", BUDGETS[0]), *(Run(generator, budget) for generator in ("kfac", "hypernet") for budget in BUDGETS)]
_SUBJECTS: dict[str, Subject] = {}


@pytest.fixture(params=NAMES)
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param not in _SUBJECTS:
        _SUBJECTS.clear()  # tests are grouped by model; one teacher at a time is enough
        _SUBJECTS[request.param] = Subject(request.param)
    return _SUBJECTS[request.param]


def test_the_battery_covers_every_small_model_of_timm() -> None:
    assert len(NAMES) >= 18
    assert set(UNSUPPORTED) <= set(NAMES)


def test_every_layer_is_listed_with_a_status_and_a_reason(subject: Subject) -> None:
    layers = subject.spec.layers
    owners = [n for n, m in subject.teacher.named_modules() if any(True for _ in m.parameters(recurse=False))]
    assert sorted(layer.name for layer in layers) == sorted(owners)
    assert sum(layer.params for layer in layers) == subject.spec.params
    assert all((layer.reason == "") is (layer.status is Status.FACTORED) for layer in layers)
    assert subject.spec.macs == macs(subject.teacher, subject.images[:2])
    # Plain layers are never unsupported here; what is, is another class, and says so.
    unsupported = {layer.kind: layer.reason for layer in layers if layer.status is Status.UNSUPPORTED}
    assert all(reason == f"no kind of layer is registered for {kind}" for kind, reason in unsupported.items())
    assert set(unsupported) == UNSUPPORTED.get(subject.name, set())
    modules = dict(subject.teacher.named_modules())
    for layer in layers:
        module = modules[layer.name]
        if type(module) in (nn.Linear, nn.Conv2d):
            small = "depthwise" if layer.channels == layer.groups > 1 else "even rank 1"
            assert layer.status is Status.FACTORED or small in layer.reason, (layer.name, layer.reason)


def test_curvature_is_finite_symmetric_and_positive(subject: Subject) -> None:
    for name, item in subject.sketches.items():
        assert item.curvature is not None
        for matrix in (item.curvature.signal, item.curvature.fisher, item.curvature.gram):
            assert matrix.isfinite().all(), name
            torch.testing.assert_close(matrix, matrix.mT, rtol=1e-4, atol=1e-5 * float(matrix.abs().max()) + 1e-30)
            values = torch.linalg.eigvalsh(matrix.double())
            assert (values[..., 0] >= -1e-4 * values[..., -1]).all(), name


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_student_keeps_every_promise(subject: Subject, run: Run, tmp_path: Path) -> None:
    check(subject, run, tmp_path)


def test_student_at_a_budget_of_one_is_the_teacher(subject: Subject) -> None:
    student, generation = student_of(subject, Run("kfac", Budget(params=1.0)))
    assert student.ranks == {}
    assert generation.plan.predicted_kl == 0
    assert torch.equal(output(student, subject.images[:2]), output(subject.teacher, subject.images[:2]))


def test_a_budget_out_of_reach_becomes_one_half_way_to_the_least(subject: Subject) -> None:
    spec = subject.spec
    least = 1 - sum(layer.dense_params - layer.rank_params for layer in spec.candidates) / spec.params
    assert reachable(spec, Budget(params=0.999)).share == 0.999
    assert reachable(spec, Budget(params=least / 2)).share == pytest.approx((1 + least) / 2)
