"""The same programs on a graphics card: what it computes is what the CPU computes, within rounding.

TF32 is off here, so that float32 means float32: the two devices then differ by the order of sums only. Students of both
are compared by their logits, relative to the largest; the factors themselves may differ, as eigenvectors of near-equal
values do.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from benchmarks.shared import distillation
from benchmarks.shared.common import answered
from benchmarks.shared.distillation import Recipe, distil_each
from hypercompress import Budget, adapt, compress, from_pretrained
from hypercompress.benchmark import Settings, compare_layers, compare_models, dense_twin
from hypercompress.running.timing import waiting
from hypercompress.synthetic.inversion import synthesize
from hypercompress.transfer import TransferNetwork

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card that CUDA reaches")

NAMES = ("test_resnet", "test_vit")
# Of the largest logit: 1e-7 of float32, through an eigendecomposition and a dozen layers. An H100 differed by 1.3e-3 at
# most, in the norm of the logits (LOG.md, 2026-11-26).
RELATIVE = 5e-3
CARD = torch.device("cuda")


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Convolutions in float32 (torch's default is TF32; that of matrix products is float32), by kernels that repeat."""
    assert not torch.backends.cuda.matmul.allow_tf32
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def teacher(name: str) -> nn.Module:
    """Random weights, the same on each call."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=10)
    return model.eval()


def images(model: Any, count: int = 32) -> Tensor:
    """Noise of the model's own size, on the CPU."""
    size = model.pretrained_cfg["input_size"]
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(1))


def assert_same(ours: nn.Module, theirs: nn.Module, batch: Tensor) -> None:
    """Logits of a model on the card and of one on the CPU."""
    with torch.no_grad():
        got, wanted = ours(batch.to(CARD)).cpu(), theirs(batch)
    assert float((got - wanted).abs().max()) <= RELATIVE * float(wanted.abs().max())


def test_captured_steps_go_where_steps_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    taught = teacher("test_vit").to(CARD)
    student = copy.deepcopy(taught)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.9)
    pool = answered(taught, images(taught, 64).to(CARD))
    recipes = [Recipe("adamw", rate, steps=12, batch=16) for rate in (1e-3, 3e-3)]
    together = distil_each(student, pool, recipes, 0)

    def refuse(*_: Any) -> None:
        raise RuntimeError("not here")

    monkeypatch.setattr(distillation, "Captured", refuse)
    for ours, theirs in zip(together, distil_each(student, pool, recipes, 0), strict=True):
        assert not torch.equal(ours(pool.images), student.eval()(pool.images))
        torch.testing.assert_close(ours(pool.images), theirs(pool.images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("generator", "data"), [("svd", False), ("hypernet", False), ("kfac", True), ("hypernet", True)]
)
def test_the_student_is_that_of_the_cpu(name: str, generator: str, data: bool) -> None:
    """Norms and refit are left out: what they keep hangs on a comparison that rounding may tip."""
    made = {}
    for device in (CARD, torch.device("cpu")):
        model = teacher(name).to(device)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        batches = images(model).split(8) if data else None  # on the CPU: `compress` moves them
        made[device.type] = compress(model, Budget(params=0.5), batches, generator, refit=False, norms=False)
        after = model.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in before.items())  # bitwise untouched
    ours, theirs = made["cuda"], made["cpu"]
    assert {p.device.type for p in ours.parameters()} == {"cuda"}
    assert ours.ranks == theirs.ranks
    assert ours.report["generator"]["strength"] == theirs.report["generator"]["strength"]
    assert_same(ours, theirs, images(teacher(name), 8))


@pytest.mark.parametrize("name", NAMES)
def test_a_student_from_the_card_loads_on_the_cpu(name: str, tmp_path: Path) -> None:
    model = teacher(name).to(CARD)
    student = compress(model, Budget(params=0.4), images(model).split(8), "kfac").eval()
    student.save_pretrained(tmp_path / "student")
    loaded = from_pretrained(tmp_path / "student").eval()
    saved = student.state_dict()
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    assert all(torch.equal(value, saved[key].cpu()) for key, value in loaded.state_dict().items())
    assert_same(student, loaded, images(model, 8))


def test_two_generations_on_the_card_are_one() -> None:
    model = teacher("test_resnet").to(CARD)
    first, second = (compress(model, Budget(params=0.5), images(model).split(8), "kfac") for _ in range(2))
    assert_same(first, second.cpu(), images(model, 8))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("network", ["auto", "none"])
def test_a_model_adapts_as_on_the_cpu(name: str, network: str) -> None:
    labels = torch.arange(24) % 4
    means = torch.randn(4, *images(teacher(name), 1).shape[1:])
    support = means[labels] + torch.randn(24, *means.shape[1:])
    made = {
        device: adapt(teacher(name).to(device), support, labels, network=network).eval() for device in ("cuda", "cpu")
    }
    ours, theirs = (made[device].report["transfer"] for device in ("cuda", "cpu"))
    for key in ("kept", "why", "penalty", "passes", "sites"):
        assert ours[key] == theirs[key]
    assert ours["loo"]["plain"]["accuracy"] == pytest.approx(theirs["loo"]["plain"]["accuracy"], abs=1 / 24)
    assert ours["loo"]["plain"]["loss"] == pytest.approx(theirs["loo"]["plain"]["loss"], rel=1e-2)
    assert_same(made["cuda"], made["cpu"], support)


def test_a_network_that_changes_everything_runs_on_the_card() -> None:
    labels = torch.arange(24) % 4
    network = TransferNetwork()  # on the CPU, as a caller has it
    student = adapt(teacher("test_resnet").to(CARD), torch.randn(24, 3, 160, 160), labels, network=network, steps=2)
    assert {p.device.type for p in student.parameters()} == {"cuda"}


def test_images_are_made_on_the_card() -> None:
    model = teacher("test_resnet").to(CARD)
    batches = synthesize(model, (3, 64, 64), 16, seed=0)
    assert all(bool(batch.isfinite().all()) for batch in batches)
    student = compress(model, Budget(params=0.4), batches, "kfac")
    assert student.report["fidelity"]["images"] > 0


def test_a_wait_returns_when_the_card_is_done() -> None:
    """Work is queued at once; only after the wait has its end been reached."""
    done, matrix = torch.cuda.Event(), torch.randn(4096, 4096, device=CARD)
    for _ in range(50):
        matrix = matrix @ matrix
    done.record()
    assert not done.query()
    waiting(CARD)()
    assert done.query()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_speed_is_measured_on_the_card(dtype: torch.dtype) -> None:
    model = teacher("test_resnet").to(CARD)
    student = compress(model, Budget(params=0.5), generator="svd").to(dtype)
    batch, settings = images(model, 4).to(CARD, dtype), Settings(seconds=0.01)
    found = compare_models(dense_twin(student), student, batch, settings)
    assert found.device == "cuda:0"
    assert found.speed.dense.ms > 0
    assert len(compare_layers(student, batch, settings)) == len(student.ranks)


def test_layers_are_timed_on_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No claim about speed: a share of 1 is always reached."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("hypercompress.latency.SECONDS", 0.001)
    student = compress(teacher("test_resnet").to(CARD), Budget(params=1.0), generator="svd", fast=True)
    assert student.report["latency"]["device"] == "cuda:0"
    assert student.report["latency"]["teacher_ms"] > 0
