"""Statistics of few images are steadied by those of noise."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress import Budget, compress
from hypercompress.curvature.steadying import COUNTS_AS, noise_share, steadied
from hypercompress.errors import DataError
from hypercompress.preparation import prepare
from hypercompress.specs import Curvature
from hypercompress.synthetic.stand_in import stand_in


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypercompress.synthetic.stand_in.usual_images", lambda _: 64)


def network() -> nn.Sequential:
    """Two-sided convolutions, a grouped one and a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip


def images(count: int = 24) -> list[Tensor]:
    return list(torch.randn(count, 2, 12, 12, generator=torch.Generator().manual_seed(1)).split(8))


def moments(curvature: Curvature) -> dict[str, Tensor]:
    """Everything in it that is measured."""
    found = {"signal": curvature.signal, "fisher": curvature.fisher, "mean": curvature.mean}
    if curvature.columns is not None:
        found["columns"] = curvature.columns
    if curvature.inputs is not None:
        found |= {f"inputs.{name}": value for name, value in moments(curvature.inputs).items()}
    return found


def test_the_noise_weighs_as_much_as_eight_images() -> None:
    assert COUNTS_AS == 8
    assert noise_share(8) == 0.5
    assert noise_share(24) == 0.25
    assert noise_share(10**6) < 1e-5


def test_moments_are_those_of_both_in_proportion() -> None:
    """Of images, and of noise through the renormalised model, each measured by itself."""
    model, data = network(), images(40)
    mine = prepare(model, data, "kfac")
    noise = stand_in(model, data[0])
    assert noise is not None
    assert mine.split is not None
    other = prepare(model, noise, "kfac", example=data[0], renormalize=True)
    both = prepare(model, data, "kfac", steady=True)
    share = noise_share(mine.split.samples)
    assert both.noise_share == share < 0.5, "of more than eight images"
    assert mine.noise_share == 0
    assert set(both.sketches) == set(mine.sketches)
    for name, sketch in both.sketches.items():
        a, b = moments(mine.sketches[name].curvature), moments(other.sketches[name].curvature)
        for key, value in moments(sketch.curvature).items():
            torch.testing.assert_close(value, (1 - share) * a[key] + share * b[key], rtol=1e-4, atol=1e-6)
        assert torch.equal(sketch.curvature.gram, mine.sketches[name].curvature.gram)
        assert torch.equal(sketch.weight, mine.sketches[name].weight)


def test_what_noise_does_not_say_stays() -> None:
    mine = prepare(network(), images(), "kfac").sketches
    assert steadied(mine, {}, 8) == mine
    assert steadied(mine, mine, 8).keys() == mine.keys()
    weights = prepare(network(), None, "svd", example=images()[0]).sketches
    assert steadied(mine, weights, 8) == mine


def test_the_student_is_another_and_the_report_says_why() -> None:
    model, data, half = network(), images(), Budget(params=0.5)
    plain, steady = (compress(model, half, data, "kfac", steady=steady) for steady in (False, True))
    assert steady.report["noise_share"] == pytest.approx(noise_share(24))  # those that judged are in it, too
    assert "noise_share" not in plain.report
    assert any(not torch.equal(value, plain.state_dict()[name]) for name, value in steady.state_dict().items())
    again = compress(model, half, data, "kfac", steady=True)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in steady.state_dict().items())


def test_progress_tells_the_two_apart() -> None:
    told: dict[str, int] = {}
    prepare(network(), images(), "kfac", steady=True, progress=lambda phase, done, _="": told.update({phase: done}))
    assert told["curvature"] == 16  # of 24: twice four judge
    assert 8 < told["noise"] <= 64


@pytest.mark.parametrize("given", [{"data": None}, {"renormalize": True}, {"forward_fn": lambda model, x: model(x)}])
def test_it_takes_images_of_the_model_s_own_kind(given: dict[str, Any]) -> None:
    given = {"data": images(), "example": images()[0], **given}
    with pytest.raises(DataError, match=r"received steady \(--steady\) without images of the model's own kind"):
        compress(network(), Budget(params=0.5), steady=True, **given)


def test_it_takes_images_and_batchnorms() -> None:
    rows = list(torch.randn(24, 6).split(8))
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)).eval()
    bare = nn.Sequential(nn.Conv2d(2, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))
    for module, data in ((model, rows), (bare, images())):
        with pytest.raises(DataError, match=r"received steady \(--steady\) for a model without BatchNorms"):
            compress(module, Budget(params=0.9), data, "kfac", steady=True, progress=lambda *_: pytest.fail("measured"))
