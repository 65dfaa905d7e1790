"""What the classifier reads lies along its rows, too, where fewer images were seen than it has directions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypercompress import Budget, compress
from hypercompress.curvature.collapse import SHARE, SHARE_UNLIKE, completed
from hypercompress.inspection import inspect
from hypercompress.preparation import Plan, prepare
from hypercompress.sketch import sketch
from hypercompress.specs import Curvature, Side

CLASSES = 12


class Net(nn.Module):
    """A feature extractor and a classifier."""

    def __init__(self, features: int = 20, classes: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, features, 3, bias=False), nn.BatchNorm2d(features)
        self.fc = nn.Linear(features, classes)
        nn.init.normal_(self.fc.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


def images(count: int, seed: int = 1) -> list[Tensor]:
    return list(torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).split(4))


def nothing_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypercompress.preparation.preparing.completed", lambda _spec, sketches, *_, **__: sketches)


def measured(model: nn.Module, count: int, monkeypatch: pytest.MonkeyPatch, *, renormalize: bool = False) -> Plan:
    """The plan with nothing completed."""
    with monkeypatch.context() as patch:
        nothing_completed(patch)
        return prepare(model.eval(), images(count), "kfac", renormalize=renormalize)


def curvature_of(plan: Plan, layer: str = "fc") -> Curvature:
    found = plan.sketches[layer].curvature
    assert found is not None
    return found


@pytest.mark.parametrize(("features", "side"), [(20, Side.OUTPUT), (9, Side.INPUT)])
@pytest.mark.parametrize("unlike", [False, True])
def test_a_share_of_the_variance_goes_along_the_rows(
    features: int, side: Side, unlike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``S' = m m^T + (1 - share) C + share c W^T W``, with c such that the trace of ``W C W^T`` or ``C`` stays."""
    model = Net(features)
    before = curvature_of(measured(model, 8, monkeypatch, renormalize=unlike))
    after = curvature_of(prepare(model, images(8), "kfac", renormalize=unlike))
    weight, share = model.fc.weight.detach(), SHARE_UNLIKE if unlike else SHARE
    seen = before.signal - torch.outer(before.mean, before.mean)
    rows = weight.T @ weight if side is Side.INPUT else weight @ weight.T @ weight @ weight.T
    wanted = (1 - share) * seen + share * seen.trace() / rows.trace() * rows
    assert after.side is side
    torch.testing.assert_close(after.signal - torch.outer(after.mean, after.mean), wanted)
    torch.testing.assert_close(after.signal.trace(), before.signal.trace())
    for name in ("mean", "fisher", "gram"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name))
    # Of 6 images (2 of 8 are held out) 5 directions at most were seen; now every one that the rows span.
    assert torch.linalg.matrix_rank(seen.double(), hermitian=True, rtol=1e-6) < min(features, CLASSES)
    assert torch.linalg.matrix_rank(after.signal.double(), hermitian=True, rtol=1e-6) == min(features, CLASSES)


def test_other_layers_and_enough_images_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    few, many = measured(model, 8, monkeypatch), measured(model, 64, monkeypatch)
    assert torch.equal(curvature_of(prepare(model, images(8), "kfac"), "conv").signal, curvature_of(few, "conv").signal)
    assert many.split is not None
    assert many.split.samples >= CLASSES
    assert torch.equal(curvature_of(prepare(model, images(64), "kfac")).signal, curvature_of(many).signal)
    bar = (
        completed(many.spec, many.sketches, CLASSES, unlike=True),
        completed(many.spec, many.sketches, 11, unlike=True),
    )
    same, other = (found["fc"].curvature for found in bar)
    assert same is many.sketches["fc"].curvature
    assert other is not None
    assert not torch.equal(other.signal, curvature_of(many).signal)


def test_positions_are_rows_that_the_classifier_saw() -> None:
    model = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12)).eval()
    x = torch.randn(3, 5, 12)  # a class for each of five positions
    spec = inspect(model, x)
    found, (*_, last) = sketch(model, spec, [x]), spec.candidates
    for samples, stays in ((3, True), (2, False)):  # 15 rows for 12 directions, and 10
        assert (completed(spec, found, samples, unlike=True)[last.name] is found[last.name]) == stays


def test_only_the_layer_whose_output_are_the_logits_gives_them() -> None:
    class Scaled(Net):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    assert curvature_of(prepare(Net().eval(), images(8), "kfac")).logits
    assert not curvature_of(prepare(Net().eval(), images(8), "kfac"), "conv").logits
    scaled = prepare(Scaled().eval(), images(8), "kfac")
    assert not curvature_of(scaled).logits


@pytest.mark.parametrize("features", [20, 9])
def test_weights_of_zero_change_nothing(features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(features)
    nn.init.zeros_(model.fc.weight)
    after = curvature_of(prepare(model.eval(), images(8), "kfac"))
    assert after.signal.isfinite().all()
    assert torch.equal(after.signal, curvature_of(measured(model, 8, monkeypatch)).signal)


def collapsed(classes: int = 24, features: int = 96) -> tuple[nn.Module, Tensor]:
    """A network whose features lie along the rows of its classifier, behind a layer with a long, faint tail of
    directions; and its inputs, of all classes.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(features, features, bias=False), nn.Linear(features, classes))
    rows = 0.5 * torch.randn(classes, features)
    frame = torch.linalg.qr(torch.cat([rows, torch.randn(features - classes, features)]).T)[0]
    model[0].weight.data = (frame * torch.tensor([1.0] * classes + [0.1] * (features - classes))) @ frame.T
    model[1].weight.data = rows
    labels = torch.arange(20 * classes) % classes
    return model.eval(), 1 + 2 * rows[labels] + 0.3 * torch.randn(len(labels), features)


def test_a_budget_is_not_met_where_too_few_images_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight of 24 classes are shown, of which the classifier could keep eleven directions as if nothing was lost; what
    the student makes of the other sixteen is judged.
    """
    model, x = collapsed()
    known = torch.arange(len(x)) % 24 < 8
    shown, others = x[known][:16], x[~known]

    def lost() -> float:
        student = compress(model, Budget(params=0.92), shown.split(2), "kfac", refit=False)
        with torch.no_grad():
            theirs, ours = model(others).log_softmax(-1), student(others).log_softmax(-1)
            return F.kl_div(ours, theirs, log_target=True, reduction="batchmean").item()

    nearer = lost()
    nothing_completed(monkeypatch)
    assert nearer < 0.85 * lost()


def test_it_is_the_same_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Gram matrix squared needs more than half a precision."""
    plan = measured(Net(), 8, monkeypatch)
    plain = completed(plan.spec, plan.sketches, 6, unlike=True)["fc"].curvature
    with torch.autocast("cpu", torch.bfloat16):
        cast = completed(plan.spec, plan.sketches, 6, unlike=True)["fc"].curvature
    assert plain is not None
    assert cast is not None
    assert torch.equal(plain.signal, cast.signal)
