"""Ranks by random search: without weights it is `kfac`, what it finds is better where it is judged, and bad input."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypercompress
from hypercompress import Budget, compress
from hypercompress.compress import finish, searched
from hypercompress.data import Preprocess, loader, open_data
from hypercompress.errors import GeneratorError
from hypercompress.fidelity import Fidelity, compare
from hypercompress.generator import ANALYTIC, WeightedKfac
from hypercompress.models import load_model
from hypercompress.preparation import Plan, prepare
from hypercompress.search import search

TEACHER = Path(hypercompress.__file__).parent / "pretrained" / "fashion_mnist_teacher"
BUDGET = Budget(params=0.05)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return load_model(str(TEACHER))[0]


@pytest.fixture(scope="module")
def images(teacher: nn.Module) -> Tensor:
    data = open_data("fashion_mnist_mini", Preprocess.of(teacher), train=True)
    return torch.cat([x for x, _ in loader(data, batch_size=256, shuffle=True, seed=0, limit=256)])


@pytest.fixture(scope="module")
def plan(teacher: nn.Module, images: Tensor) -> Plan:
    return prepare(teacher, images.split(16), "kfac")


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is a second later each time it is read."""
    ticks = iter(range(10_000))
    monkeypatch.setattr("hypercompress.search.time.perf_counter", lambda: float(next(ticks)))


def test_without_weights_it_is_kfac(plan: Plan) -> None:
    found = search(plan, BUDGET, 0.0)
    assert (found.tries, found.generator.weights) == (0, {})
    ours, theirs = (g.generate(plan.spec, plan.sketches, BUDGET) for g in (found.generator, ANALYTIC["kfac"]))
    assert ours.plan == theirs.plan
    for name, layer in theirs.factors.layers.items():
        assert torch.equal(ours.factors.layers[name].product(), layer.product())


def test_a_weight_moves_ranks_to_its_layer(plan: Plan) -> None:
    kfac = ANALYTIC["kfac"]
    plain = kfac.generate(plan.spec, plan.sketches, BUDGET).plan
    name = min(plain.ranks, key=lambda n: plain.ranks[n])
    heavy = WeightedKfac("kfac-search", kfac.metric, spread=kfac.spread, weights={name: 6.0})
    bent = heavy.generate(plan.spec, plan.sketches, BUDGET).plan
    assert name not in bent.ranks or bent.ranks[name] > plain.ranks[name]


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize(("refit", "seed"), [(False, 2), (True, 1)])  # with which so few tries find something
def test_what_it_finds_is_better_on_the_images_that_confirm(refit: bool, seed: int, plan: Plan) -> None:
    found, tries = searched(plan, BUDGET, 24.0, refit=refit, seed=seed)
    assert tries == 23
    assert isinstance(found.generator, WeightedKfac)
    assert plan.split is not None
    kls = []
    for generator in (ANALYTIC["kfac"], found.generator):
        student = finish(replace(plan, generator=generator), BUDGET, refit=refit, norms=False)
        assert student.report["budget"]["achieved"] <= BUDGET.params + 1e-9
        kls.append(compare(plan.teacher, student, [*plan.split.select, *plan.split.confirm]).kl)
    assert found.generator.weights != {}
    assert kls[1] < kls[0]


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize(("refit", "seed"), [(False, 2), (True, 1)])  # with which so few tries find something
def test_a_seed_gives_one_answer(refit: bool, seed: int, plan: Plan) -> None:
    weights = []
    for _ in range(2):
        generator = searched(plan, BUDGET, 9.0, refit=refit, seed=seed)[0].generator
        assert isinstance(generator, WeightedKfac)
        weights.append(generator.weights)
    assert weights[0] == weights[1] != {}


@pytest.mark.usefixtures("ticking")
def test_compress_searches_and_says_so(teacher: nn.Module, images: Tensor) -> None:
    told: list[tuple[str, int]] = []
    student = compress(
        teacher,
        BUDGET,
        data=images.split(16),
        search=4.0,
        progress=lambda phase, done, _at="": told.append((phase, done)),
    )
    assert student.report["search"] == {"seconds": 4.0, "tries": 3}
    assert [done for phase, done in told if phase == "search"] == [1, 2, 3]
    assert student.report["generator"]["name"] == "kfac-search"
    assert "search" not in compress(teacher, BUDGET, data=images.split(16), generator="kfac").report


def test_there_is_nothing_to_search(teacher: nn.Module, images: Tensor) -> None:
    some = images[:48].split(8)
    with pytest.raises(GeneratorError, match="received a search of 1 seconds and no data; expected images"):
        compress(teacher, BUDGET, search=1.0)
    with pytest.raises(GeneratorError, match=r"with generator 'svd'.*hypernet or kfac.*change what differs"):
        compress(teacher, BUDGET, data=some, generator="svd", search=1.0)
    with pytest.raises(GeneratorError, match="received a search of -1 seconds"):
        compress(teacher, BUDGET, data=some, search=-1.0)


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize("confirmed", [True, False])
def test_what_the_other_images_do_not_confirm_is_not_taken(
    confirmed: bool, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan.split is not None
    confirm, falling = plan.split.confirm, iter(range(9, 0, -1))

    def told(_teacher: nn.Module, _student: nn.Module, images: Any, _answer: Any) -> Fidelity:
        """Each student is better than the last one; on the images that confirm the first try is as good as `kfac`."""
        kl = {True: -float(next(falling)), False: 1.0}[confirmed] if images is confirm else float(next(falling))
        return Fidelity(1.0, kl, None, None, 1)

    monkeypatch.setattr("hypercompress.search.compare", told)
    found = search(plan, BUDGET, 2.0)
    assert found.tries == 1
    assert (found.generator.weights != {}) == confirmed
