"""Noise stands in for images where there are none and the model reads images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress import Budget, compress
from hypercompress.allocation import least_share
from hypercompress.architecture import load_timm
from hypercompress.errors import ModelError, NonFiniteError
from hypercompress.inspection import inspect
from hypercompress.preparation import prepare
from hypercompress.specs import Unit
from hypercompress.synthetic.inversion import synthesize
from hypercompress.synthetic.stand_in import stand_in

HALF = Budget(params=0.5)
SIZE = (2, 12, 12)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypercompress.synthetic.stand_in.usual_images", lambda _: 96)


def network(norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 12, 3), norm(12), nn.ReLU(), nn.Conv2d(12, 16, 3), norm(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip


def example(*, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(2, *SIZE, dtype=dtype)


def test_the_noise_is_of_the_model_s_size_and_seeded() -> None:
    model = network()
    noise = torch.cat(stand_in(model, example(), seed=3) or [])
    assert noise.shape == (96, *SIZE)
    assert torch.equal(noise, torch.cat(synthesize(model, SIZE, 96, steps=0, seed=3)))
    assert not torch.equal(noise, torch.cat(stand_in(model, example(), seed=4) or []))
    timm, _ = load_timm("test_resnet", pretrained=False, pretrained_cfg={"input_size": [3, 20, 24]})
    assert {batch.shape[1:] for batch in stand_in(timm) or []} == {(3, 20, 24)}


def test_of_a_batch_with_labels_the_images_count() -> None:
    with_labels = stand_in(network(), (example(), torch.zeros(2))) or []
    assert torch.equal(torch.cat(with_labels), torch.cat(stand_in(network(), example()) or []))


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (network(), None),  # it does not say what it reads
        (nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), torch.zeros(2, 6)),
        (network(), example(dtype=torch.uint8)),
        (network(), {"images": example()}),
    ],
)
def test_nothing_stands_in_where_the_model_does_not_read_images(model: nn.Module, batch: object) -> None:
    assert stand_in(model, batch) is None


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.Identity])
def test_auto_without_data_is_kfac_on_noise(norm: type[nn.Module]) -> None:
    """The student is the one of the same noise passed as data of another kind, and its report says what it saw."""
    model = network(norm)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    student = compress(model, HALF, example=example())
    noise = stand_in(model, example())
    wanted = compress(model, HALF, noise, renormalize=True)
    for name, value in wanted.state_dict().items():
        assert torch.equal(value, student.state_dict()[name])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    report = student.report
    assert (report["generator"]["name"], report["calibration"]) == ("kfac", "noise:96")
    assert report.get("renormalized", False) == (norm is nn.BatchNorm2d)
    assert report["predicted_kl"] is None
    assert set(report["fidelity"].values()) == {None}


@pytest.mark.parametrize("seed", [0, 7])
def test_everything_is_passed_on(seed: int) -> None:
    model = network()
    told: list[str] = []
    wanted = prepare(model, stand_in(model, example(), seed=seed), "auto", renormalize=True, seed=seed)
    plan = prepare(
        model,
        None,
        "auto",
        example=example(),
        latency_batch=3,
        seed=seed,
        progress=lambda phase, *_: told.append(phase),
    )
    assert {"latency", "curvature"} <= set(told)
    assert len(plan.timed) == 3
    for layer in wanted.spec.candidates:
        ours, theirs = (p.sketches[layer.name].curvature for p in (plan, wanted))
        assert torch.equal(ours.fisher, theirs.fisher)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_the_model_s_own_precision(dtype: torch.dtype) -> None:
    student = compress(network().to(dtype), HALF, example=example(dtype=dtype))
    assert student.report["calibration"] == "noise:96"
    assert {parameter.dtype for parameter in student.parameters()} == {dtype}


def test_many_are_refitted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypercompress.synthetic.stand_in.usual_images", lambda _: 512)
    model = network()
    student = compress(model, HALF, example=example())
    wanted = compress(model, HALF, stand_in(model, example()), renormalize=True)
    assert student.report["refitted"] == wanted.report["refitted"] == "both"
    for name, value in wanted.state_dict().items():
        assert torch.equal(value, student.state_dict()[name])


def test_it_is_nearer_than_the_weights_alone() -> None:
    """A network with moments of what it reads: of 1/f noise itself, so that noise knows all there is to know."""
    model = network()
    images = torch.cat(synthesize(model, SIZE, 512, steps=0, seed=9))
    with torch.no_grad():
        for norm in (model[1], model[4]):
            assert isinstance(norm, nn.BatchNorm2d)
            nn.init.uniform_(norm.weight, 0.1, 2.0)
        model.train()(images)  # one batch of momentum 0.1 ...
        for norm in (model[1], model[4]):
            norm.momentum = 1.0  # ... and then the moments themselves
        model.train()(images)
    model.eval()
    test = torch.cat(synthesize(model, SIZE, 256, steps=0, seed=10))
    wrong = {}
    for generator in ("auto", "svd"):
        student = compress(model, Budget(params=0.35), generator=generator, example=example())
        wrong[generator] = float((student(test) - model(test)).square().mean().detach())
    assert wrong["auto"] < wrong["svd"] / 2


@pytest.mark.parametrize("other", ["no images", "generator", "forward_fn"])
def test_otherwise_the_weights_alone_are_read(other: str) -> None:
    vectors = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5)).eval()
    student = compress(
        vectors if other == "no images" else network(),
        HALF,
        generator="svd" if other == "generator" else "auto",
        example=torch.zeros(2, 12) if other == "no images" else example(),
        forward_fn=(lambda module, batch: module(batch)) if other == "forward_fn" else None,
    )
    assert student.report["generator"]["name"] == "svd"
    assert "renormalized" not in student.report
    assert student.report.get("calibration") is None


class Around(nn.Module):
    """A network that is called in some way which the batch that is inspected passes."""

    def __init__(self, way: Callable[[nn.Sequential, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.way = network(), way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self.body, x)


def undifferentiable(body: nn.Sequential, x: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = body(x)
    return output


def cut(body: nn.Sequential, x: Tensor) -> Tensor:
    output: Tensor = body[3:](body[:3](x).detach())
    return output


def of_two(body: nn.Sequential, x: Tensor) -> Tensor:
    output: Tensor = body(x.reshape(2, *SIZE))
    return output


def overwritten(body: nn.Sequential, x: Tensor) -> Tensor:
    """A backward pass would need what is no longer there."""
    hidden = body[0](x).sigmoid()
    hidden += 1
    output: Tensor = body[1:](hidden)
    return output


def rarely_finite(body: nn.Sequential, x: Tensor) -> Tensor:
    """Held-out noise alone is unlucky: it is asked without gradients, and in batches of more than two."""
    output: Tensor = body(x)
    return output if len(x) == 2 or output.requires_grad or body[1].training else output / 0 - output / 0


@pytest.mark.parametrize(
    ("way", "why"),
    [
        (undifferentiable, "no_grad"),
        (cut, "no gradient reaches body.0"),
        (of_two, r"shape .* is invalid for input of size \d+\."),
        (overwritten, "modified by an inplace operation"),
        (rarely_finite, "NaN or infinity"),
    ],
)
def test_where_noise_fails_the_weights_alone_are_read_and_it_is_said(
    way: Callable[[nn.Sequential, Tensor], Tensor], why: str
) -> None:
    model = Around(way).eval()
    with pytest.warns(UserWarning, match=f"noise cannot stand in for images: .*{why}.*The weights alone"):
        student = compress(model, HALF, example=example())
    wanted = compress(model, HALF, generator="svd", example=example())
    assert student.report["generator"]["name"] == "svd"
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in wanted.state_dict().items())


class Failing(torch.autograd.Function):
    """The identity, whose backward pass raises an error."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, error: Exception) -> Tensor:
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:  # type: ignore[override]
        raise ctx.error


@pytest.mark.parametrize("backward", [True, False], ids=["backward", "forward"])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("17 GB"), RuntimeError("can't allocate memory: 17 GB")], ids=str
)
def test_a_lack_of_memory_is_raised(error: RuntimeError, backward: bool) -> None:
    """Another student than on a larger machine, and a worse one, is not what was asked for."""

    def large(body: nn.Sequential, x: Tensor) -> Tensor:
        output: Tensor = body(x)
        if len(x) == 2:  # what is inspected fits
            return output
        if not backward:
            raise error
        failed: Tensor = Failing.apply(output, error)
        return failed

    with pytest.raises(RuntimeError, match="17 GB") as told:
        compress(Around(large).eval(), HALF, example=example())
    assert told.value is error
    assert "generator 'svd'" in told.value.__notes__[0]


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError, ValueError, IndexError, TypeError])
def test_a_fault_of_the_package_s_own_is_raised(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise kind("ours")

    monkeypatch.setattr("hypercompress.preparation.preparing.completed", wrong)
    with pytest.raises(kind, match="ours"):
        compress(network(), HALF, example=example())


def test_a_budget_that_only_layers_beyond_the_noise_s_reach_allow_is_met_from_the_weights() -> None:
    """The layer that no gradient reaches is factored by ``svd`` and could not be with noise."""
    model = Around(cut).eval()
    tight = Budget(params=least_share(inspect(model, example()), Unit.PARAMS) + 0.01)
    with pytest.warns(UserWarning, match="no gradient reaches body.0"):
        student = compress(model, tight, example=example())
    assert "body.0" in student.ranks


def test_faults_of_the_model_or_the_example_are_not_the_noise_s() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"received NaN or infinity in 0\.weight;"):
        compress(model, HALF, example=example())
    with pytest.raises(ModelError, match="that the model does not take"):
        compress(network(), HALF, example=torch.zeros(2, 5, 12, 12))


def test_a_plan_says_how_many_images_stood_in() -> None:
    assert prepare(network(), None, "auto", example=example()).stand_in == 96
    assert prepare(network(), None, "svd", example=example()).stand_in == 0
    noise = stand_in(network(), example())
    assert prepare(network(), noise, "auto", renormalize=True).stand_in == 0  # they were given


def test_the_saved_report_tells_of_the_noise(tmp_path: Path) -> None:
    compress(network(), HALF, example=example()).save_pretrained(tmp_path / "s")
    assert json.loads((tmp_path / "s" / "report.json").read_text())["calibration"] == "noise:96"
    assert "It was calibrated on noise:96, its BatchNorms renormalised" in (tmp_path / "s" / "README.md").read_text()
