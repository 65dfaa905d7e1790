"""The parts of the held-out protocol that are mathematics: noise, search, ablations, and the time of one pass."""

import copy
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import hypernet_time
from benchmarks.protocol.ablation import ALLOCATION, GROUPS, AblatedHypernetwork, Unguarded, like, noisy
from benchmarks.protocol.noise import Kind, images_of
from benchmarks.shared.common import Results
from hypercompress.compress import finish
from hypercompress.generator import ANALYTIC, HypernetConfig, HypernetGenerator, Hypernetwork
from hypercompress.generator.heads import Outputs
from hypercompress.generator.hypernetwork import tokens_of
from hypercompress.generator.start import start_of
from hypercompress.preparation import Plan, prepare
from hypercompress.running.norms import remembering_norms
from hypercompress.specs import Budget
from hypercompress.student import build_student
from hypercompress.synthetic.inversion import SHARED, mismatch

BUDGET = Budget(params=0.3)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 9, 24),
        nn.ReLU(),
        nn.Linear(24, 5),
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 2.5
    return model.eval()


@pytest.fixture(scope="module")
def plans(teacher: nn.Module) -> dict[bool, Plan]:
    """With images and without."""
    images = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 0.2
    return {True: prepare(teacher, images.split(8), "kfac"), False: prepare(teacher, None, "svd", example=images[:2])}


@pytest.fixture(scope="module")
def network() -> Hypernetwork:
    """One that says something in every group."""
    torch.manual_seed(0)
    made = Hypernetwork(HypernetConfig(width=16, depth=1, heads=2))
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return made.eval()


def outputs(network: Hypernetwork, plan: Plan) -> Outputs:
    start = start_of(plan.spec, plan.sketches)
    with torch.no_grad():
        found: Outputs = network(tokens_of(plan.spec, plan.sketches, start, BUDGET), start.measured)
    return found


def factors(network: Hypernetwork, plan: Plan) -> dict[str, Tensor]:
    generation = HypernetGenerator(network).generate(plan.spec, plan.sketches, BUDGET)
    return {name: layer.product() for name, layer in generation.factors.layers.items()}


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "channels"])
def test_one_group_is_silenced_and_the_others_speak_as_before(
    group: str, network: Hypernetwork, plans: dict[bool, Plan]
) -> None:
    whole, ours = outputs(network, plans[True]), outputs(AblatedHypernetwork(network, [group]), plans[True])
    assert bool(getattr(whole, group).any())
    assert not bool(getattr(ours, group).any())
    for field in fields(Outputs):
        if field.name != group:
            assert torch.equal(getattr(ours, field.name), getattr(whole, field.name))


@pytest.mark.parametrize("measured", [True, False])
def test_all_silenced_is_the_analytic_generator(measured: bool, network: Hypernetwork, plans: dict[bool, Plan]) -> None:
    plan = plans[measured]
    ours = factors(AblatedHypernetwork(network, GROUPS), plan)
    wanted = ANALYTIC["kfac" if measured else "prior"].generate(plan.spec, plan.sketches, BUDGET)
    assert set(ours) == set(wanted.factors.layers)
    for name, layer in wanted.factors.layers.items():
        torch.testing.assert_close(ours[name], layer.product())
    whole = factors(network, plan)
    assert any(name not in whole or not torch.allclose(ours[name], whole[name]) for name in ours)


def test_curvature_without_data_is_a_group_of_its_own(network: Hypernetwork, plans: dict[bool, Plan]) -> None:
    plan, silent = plans[False], AblatedHypernetwork(network, ["channels"])
    pairs = ((factors(network, p), factors(silent, p)) for p in (plans[True], plan))
    with_images, without = ([torch.equal(a[n], b[n]) for n in set(a) & set(b)] for a, b in pairs)
    assert all(with_images)
    assert not all(without)
    features = torch.ones(3, 5)
    assert not bool(silent.channels(features, torch.ones(16)).any())
    assert bool(network.channels(features, torch.ones(16)).any())


def test_allocation_alone_bends_ranks_and_nothing_else(network: Hypernetwork, plans: dict[bool, Plan]) -> None:
    plan = plans[True]
    alone = AblatedHypernetwork(network, [group for group in GROUPS if group not in ALLOCATION])
    generation = HypernetGenerator(alone).generate(plan.spec, plan.sketches, BUDGET)
    frames = ANALYTIC["kfac"].directions(plan.spec, plan.sketches).outputs
    for name, layer in generation.factors.layers.items():
        if layer.project is None:
            wanted = frames[name].stored(torch.float64).factors(plan.sketches[name].weight, layer.rank)
            torch.testing.assert_close(layer.product(), wanted.product())


def test_noise_has_the_tokens_moments_and_nothing_of_their_content(
    network: Hypernetwork, plans: dict[bool, Plan]
) -> None:
    plan = plans[True]
    start = start_of(plan.spec, plan.sketches)
    tokens = tokens_of(plan.spec, plan.sketches, start, BUDGET)
    ours = noisy(tokens, 0)
    assert ours.layers.shape == tokens.layers.shape
    assert torch.equal(ours.order, tokens.order)
    values = torch.linspace(-3, 5, 20_000)
    assert float(like(values, 1).mean()) == pytest.approx(float(values.mean()), abs=0.05)
    assert float(like(values, 1).std()) == pytest.approx(float(values.std()), rel=0.02)
    assert abs(float(torch.corrcoef(torch.stack([like(values, 1), values]))[0, 1])) < 0.03
    other = replace(tokens, layers=tokens.layers.flip(0), sketches=tokens.sketches.flip(0))
    deaf = AblatedHypernetwork(network, noise=0)
    for field in fields(Outputs):  # it does not notice that the layers have changed places
        torch.testing.assert_close(getattr(deaf(tokens, True), field.name), getattr(deaf(other, True), field.name))
    again = AblatedHypernetwork(network, noise=1)
    assert not torch.equal(deaf(tokens, True).weight, again(tokens, True).weight)


def test_groups_are_those_that_a_hypernetwork_has(network: Hypernetwork) -> None:
    assert {*GROUPS, "states"} == {field.name for field in fields(Outputs)} | {"channels"}
    with pytest.raises(ValueError, match="received output groups colour; expected some of weight"):
        AblatedHypernetwork(network, ["colour", "gain"])


def test_the_guard_lets_an_unguarded_one_pass(network: Hypernetwork, plans: dict[bool, Plan]) -> None:
    wild = HypernetGenerator(network, name="wild")
    plan = replace(plans[True], generator=Unguarded(wild))
    student = finish(plan, BUDGET, refit=False)
    wanted = build_student(plan.teacher, plan.spec, wild.generate(plan.spec, plan.sketches, BUDGET))
    assert student.report["generator"] == {"name": "wild", "strength": 1.0}
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), wanted.parameters(), strict=True))


def test_white_noise_is_white_and_pink_noise_falls_with_the_frequency() -> None:
    slopes: dict[Kind, float] = {"gauss": 0.0, "pink": -1.0}
    for kind, slope in slopes.items():
        images = images_of(kind, nn.Identity(), 400, (1, 32, 32), 0)
        assert float(images.mean()) == pytest.approx(0, abs=0.02)
        assert float(images.std()) == pytest.approx(1, rel=0.02)
        amplitude = torch.fft.fft2(images).abs().mean((0, 1))[0, 1:16]  # along one axis, waves 1 to 15
        waves = torch.arange(1, 16).float().log()
        fitted = torch.linalg.lstsq(torch.stack([waves, torch.ones(15)], 1), amplitude.log()).solution
        assert float(fitted[0]) == pytest.approx(slope, abs=0.05)
        assert torch.equal(images, images_of(kind, nn.Identity(), 400, (1, 32, 32), 0))
        assert not torch.equal(images, images_of(kind, nn.Identity(), 400, (1, 32, 32), 1))


def test_colours_of_pink_noise_go_together() -> None:
    images = images_of("pink", nn.Identity(), 2000, (3, 16, 16), 0)
    a, b = images[:, 0].flatten(), images[:, 1].flatten()
    assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) == pytest.approx(SHARED, abs=0.05)
    assert images_of("pink", nn.Identity(), 3, (3, 9, 7), 0).shape == (3, 3, 9, 7)


def test_synthetic_images_are_as_many_and_have_the_moments(teacher: nn.Module) -> None:
    made, pink = (images_of(kind, teacher, 64, (3, 8, 8), 0) for kind in ("synthetic", "pink"))
    assert (len(made), len(pink)) == (64, 64)
    norms = remembering_norms(teacher)
    with torch.no_grad():
        assert mismatch(teacher, norms, made) < 0.5 * mismatch(teacher, norms, pink)


def test_the_time_of_one_pass_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--models", "test_vit", "--threads", "1", "--seconds", "0.01", "--out", str(tmp_path)]
    hypernet_time.main(words)
    (row,) = Results(tmp_path / "hypernet_time.csv", hypernet_time.KEY, ()).rows
    assert min(float(row["seconds_tokens"]), float(row["seconds_pass"])) > 0
    assert int(row["tokens"]) == 1 + 9 * int(row["layers"])
    assert "test_vit: tokens" in capsys.readouterr().out


def test_the_ablated_one_leaves_the_whole_one_as_it_was(network: Hypernetwork, plans: dict[bool, Plan]) -> None:
    before = copy.deepcopy(network.state_dict())
    whole = outputs(network, plans[True])
    outputs(AblatedHypernetwork(network, GROUPS, noise=0), plans[True])
    after = outputs(network, plans[True])
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(torch.equal(getattr(whole, f.name), getattr(after, f.name)) for f in fields(Outputs))
