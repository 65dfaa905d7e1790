"""The meta-gradient against plain autograd and finite differences, and that a few steps help."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from hypercompress.errors import GeneratorError
from hypercompress.fidelity import compare
from hypercompress.generator import ANALYTIC
from hypercompress.generator.emission import emit
from hypercompress.generator.heads import Outputs
from hypercompress.inspection import inspect
from hypercompress.losses import distillation_kl
from hypercompress.meta import (
    Case,
    Objective,
    curvature_error,
    evaluate_case,
    generate,
    meta_loss,
    prepare_case,
)
from hypercompress.meta.loss import _adapt, _others, _Point
from hypercompress.reconstruction import reconstruct
from hypercompress.specs import Budget, Side
from hypercompress.student import build_student
from hypercompress.tokens import BANDS
from tests.meta_cases import images, small, teacher

BUDGET = Budget(params=0.35)
TIGHT = Budget(macs=0.3)  # factors every layer, the one with a norm behind it too


@pytest.fixture(scope="module")
def case() -> Case:
    torch.manual_seed(0)
    return prepare_case("small", teacher(), images())


def zeros(case: Case, **given: Tensor) -> Outputs:
    n = len(case.spec.candidates)
    blank = Outputs(*(torch.zeros(n) for _ in range(6)), torch.zeros(n, BANDS), torch.zeros(n, 16))
    return replace(blank, **given)


def plain_loss(case: Case, outputs: Outputs, batch: Tensor, objective: Objective) -> Tensor:
    """log(KL + floor) of the student, written down without any of the machinery of `meta_loss`."""
    emission = emit(case.spec, case.sketches[True], case.starts[True], outputs, TIGHT)
    parameters = {}
    for name, layer in emission.layers.items():
        shape = case.teacher.get_parameter(f"{name}.weight").shape
        parameters[f"{name}.weight"] = layer.matrix().reshape(shape)
        if layer.bias is not None:
            parameters[f"{name}.bias"] = layer.bias
    for name, delta in emission.deltas.items():
        parameters[name] = case.teacher.get_parameter(name) + delta
    with torch.no_grad():
        target = case.teacher(batch)
    return (distillation_kl(functional_call(case.teacher, parameters, (batch,)), target) + objective.floor).log()


SMOOTH = {"shift": (), "spread": (), "rotation": (), "gain": (BANDS,)}


@pytest.mark.parametrize("name", list(SMOOTH))
def test_gradient_without_look_ahead_is_that_of_the_loss(case: Case, name: str) -> None:
    objective, batch = Objective(features=0.0), images(1, seed=5)[0]
    shape = (len(case.spec.candidates), *SMOOTH[name])
    value = (0.05 * torch.randn(shape)).requires_grad_()
    outputs = zeros(case, **{name: value})
    emission = emit(case.spec, case.sketches[True], case.starts[True], outputs, TIGHT, training=True)
    assert "0" in emission.layers
    loss, kl = meta_loss(case, emission, [batch], objective)
    (ours,) = torch.autograd.grad(loss, value)
    wanted = plain_loss(case, outputs, batch, objective)
    (theirs,) = torch.autograd.grad(wanted, value)
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    assert kl == pytest.approx(float(wanted.detach().exp()) - objective.floor, rel=1e-3)
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-5)
    assert theirs.abs().max() > 1e-4
    # And a finite difference along the gradient, for both.
    step = 2e-3 * theirs / theirs.norm()
    with torch.no_grad():
        ends = [plain_loss(case, zeros(case, **{name: value + s * step}), batch, objective) for s in (1, -1)]
    assert float(ends[0] - ends[1]) / 4e-3 == pytest.approx(float(theirs.norm()), rel=0.1)


def test_discarded_directions_have_a_gradient_in_training(case: Case) -> None:
    weight = torch.zeros(len(case.spec.candidates), requires_grad=True)
    outputs = zeros(case, weight=weight)
    emission = emit(case.spec, case.sketches[True], case.starts[True], outputs, BUDGET, training=True)
    loss, _ = meta_loss(case, emission, images(1), Objective())
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
    # A weight common to all layers changes nothing, so neither may its gradient.
    assert float(gradient.sum().abs()) < 1e-3 * float(gradient.abs().sum())


@pytest.mark.parametrize("measured", [True, False])
def test_look_ahead_moves_the_student_and_never_the_teacher(case: Case, measured: bool) -> None:
    before = copy.deepcopy(case.teacher.state_dict())
    network = small(0.3)
    objective = Objective(inner_rate=5e-3)
    values = []
    for steps in (0, 3):
        emission, regression = generate(network, case, BUDGET, measured=measured)
        loss, kl = meta_loss(case, emission, [images(1)[0]] * (steps + 1), objective)
        network.zero_grad()
        (loss + regression).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
        values.append(kl)
    assert values[1] < values[0]  # distilled on that very batch
    assert all(torch.equal(before[name], tensor) for name, tensor in case.teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in case.teacher.parameters())
    assert not any(m._forward_hooks for m in case.teacher.modules())


def learnt(case: Case, budget: Budget, steps: int, *, measured: bool, refit: bool) -> list[float]:
    """Losses of a small network over two dozen steps on the same batches."""
    network, calibration = small(), images()[0] if refit else None
    batches = images(5)[4:] if refit else images(steps + 1)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    losses = []
    for _ in range(24):
        emission, _ = generate(network, case, budget, measured=measured, refit=refit)
        loss, _ = meta_loss(case, emission, batches, Objective(curvature=0.0), refit=calibration)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(
    ("steps", "measured", "refit", "budget"),
    [(0, True, False, BUDGET), (2, True, False, BUDGET), (0, False, False, BUDGET), (0, True, True, TIGHT)],
    ids=["generated", "look-ahead", "no data", "refit"],
)
def test_a_few_meta_steps_reduce_the_loss(case: Case, steps: int, measured: bool, refit: bool, budget: Budget) -> None:
    losses = learnt(case, budget, steps, measured=measured, refit=refit)
    assert min(losses[-3:]) < losses[0] - 0.01, losses


def test_the_value_is_the_loss_however_the_surrogate_is_scaled(case: Case) -> None:
    emission, regression = generate(small(), case, BUDGET, measured=True)
    loss, kl = meta_loss(case, emission, images(1), Objective(features=0.0, floor=0.5))
    assert float(loss.detach()) == pytest.approx(float(torch.tensor(kl + 0.5).log()), abs=1e-5)
    assert float(regression) == 0


def test_an_objective_that_would_reward_errors_is_refused() -> None:
    with pytest.raises(
        GeneratorError, match=r"objective with features -1, latency nan, floor 0; expected weights of 0 or"
    ):
        Objective(features=-1.0, latency=float("nan"), floor=0.0)
    with pytest.raises(
        GeneratorError, match=r"objective with inner_rate -0\.1; expected weights of 0 or more, floor and i"
    ):
        Objective(inner_rate=-0.1)


@pytest.mark.parametrize(("measured", "name"), [(True, "kfac"), (False, "prior")])
def test_strength_zero_is_the_analytic_student(case: Case, measured: bool, name: str) -> None:
    held_out = images(2, seed=9)
    got = evaluate_case(small(1.0), case, BUDGET, held_out, measured=measured, strength=0.0)
    generation = ANALYTIC[name].generate(case.spec, case.sketches[measured], BUDGET)
    wanted = compare(case.teacher, build_student(case.teacher, case.spec, generation), held_out).kl
    assert got == pytest.approx(wanted, rel=1e-2)
    assert evaluate_case(small(0.0), case, BUDGET, held_out, measured=measured) == pytest.approx(wanted, rel=1e-2)


def test_distillation_steps_bring_the_student_closer(case: Case) -> None:
    options = {"batches": images(1), "objective": Objective(inner_rate=5e-3)}
    before = evaluate_case(small(), case, BUDGET, **options)
    assert evaluate_case(small(), case, BUDGET, **options, steps_batches=images(1) * 6) < before


def test_what_it_is_judged_on_weighs_by_image(case: Case) -> None:
    """A last batch of few images counted as much as a whole one."""
    (batch,) = images(1, seed=9)
    whole = evaluate_case(small(), case, BUDGET, [batch])
    parts = [batch[:1], batch[1:]]
    assert evaluate_case(small(), case, BUDGET, parts) == pytest.approx(whole, rel=1e-5)
    one, others = (evaluate_case(small(), case, BUDGET, [part]) for part in parts)
    assert abs(one - others) > 1e-3 * whole, "images that are not all alike"


def test_matrices_are_those_of_the_built_student(case: Case) -> None:
    emission, _ = generate(small(0.5), case, BUDGET, measured=True)
    plain = emit(case.spec, case.sketches[True], case.starts[True], zeros(case), BUDGET)
    found = {name: layer.matrix() for name, layer in plain.layers.items()}
    for name, layer in plain.factors().layers.items():
        torch.testing.assert_close(found[name].detach(), layer.product(), rtol=1e-4, atol=1e-5)
    assert set(emission.layers) == set(emission.plan.ranks)


def test_case_compares_maps_over_the_depth(case: Case) -> None:
    assert len(case.watched) == len(set(case.watched)) >= 3
    assert case.watched[-1] == "8"
    assert not case.teacher.training
    assert case.spec == inspect(case.teacher, images()[0][:2])
    for measured, start in case.starts.items():
        assert start.measured is measured


def test_curvature_error_is_zero_at_the_truth(case: Case) -> None:
    changes, totals = {}, []
    for layer in case.spec.candidates:
        guess, true = case.starts[False].curvatures[layer.name], case.starts[True].curvatures[layer.name]
        if guess.side is Side.OUTPUT:
            ours, theirs = guess.fisher.diagonal(), true.fisher.diagonal()
        else:
            ours, theirs = guess.signal.diagonal() - guess.mean**2, true.signal.diagonal() - true.mean**2
        changes[layer.name] = theirs.clamp_min(theirs.max() * 1e-4).log() - ours.log() + 2.0  # a common factor is free
        totals.append(case.starts[True].energies[layer.name].sum().log())
    weight = torch.stack(totals).float() - 7.0
    assert float(curvature_error(case, changes, weight)) == pytest.approx(0, abs=1e-6)
    off = {name: change + torch.linspace(-1, 1, len(change)) for name, change in changes.items()}
    assert float(curvature_error(case, off, weight)) > 0.2


def test_the_refitted_loss_is_that_of_the_student_with_its_output_factors_refitted(case: Case) -> None:
    """The value against the built and reconstructed student; no gradient where the refit undoes what was generated."""
    gain = torch.zeros(len(case.spec.candidates), BANDS, requires_grad=True)
    weight, rotation = (torch.zeros(len(case.spec.candidates), requires_grad=True) for _ in range(2))
    outputs, calibration, batch = zeros(case, gain=gain, weight=weight, rotation=rotation), images()[0], images(5)[4]
    emission = emit(case.spec, case.sketches[True], case.starts[True], outputs, TIGHT, training=True)
    loss, kl = meta_loss(case, emission, [batch], Objective(features=0.0), refit=calibration)
    student = build_student(case.teacher, case.spec, ANALYTIC["kfac"].generate(case.spec, case.sketches[True], TIGHT))
    reconstruct(case.teacher, student, case.spec, case.sketches[True], calibration, both=False)
    wanted = compare(case.teacher, student, [batch]).kl
    assert kl == pytest.approx(wanted, rel=1e-3)
    assert float(loss.detach()) == pytest.approx(math.log(wanted + 0.02), rel=1e-3)
    found = torch.autograd.grad(loss, (weight, rotation, gain), allow_unused=True)
    assert found[0].abs().max() > 0
    assert found[1].abs().max() > 0
    assert found[2] is None or not found[2].any()
    got = evaluate_case(small(), case, TIGHT, [batch], refit=calibration)
    assert got == pytest.approx(wanted, rel=1e-3)


def test_look_ahead_trains_with_norms_as_distillation_does(case: Case) -> None:
    """Running moments of the student follow its own outputs; those of the teacher stay."""
    before = copy.deepcopy(case.teacher.state_dict())
    emission, _ = generate(small(), case, TIGHT, measured=True)
    point = _adapt(case, emission, _others(case, emission), images(3), Objective())
    moved = {name for name, buffer in point.buffers.items() if not torch.equal(buffer, before[name])}
    assert moved == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert all(torch.equal(before[name], tensor) for name, tensor in case.teacher.state_dict().items())


def test_look_ahead_under_autocast_takes_its_steps_from_where_the_last_one_led(case: Case) -> None:
    """Casts of the weights that a step has changed are made anew: the way is that of single precision, not of one
    gradient again and again.
    """
    emission = generate(small(), case, BUDGET, measured=True)[0]
    options = (case, emission, _others(case, emission), images(13), Objective(inner_rate=1e-2))
    single = _adapt(*options)
    with torch.autocast("cpu", torch.bfloat16):
        half = _adapt(*options)

    def way(point: _Point) -> Tensor:
        return torch.cat([tensor.detach().flatten() for tensor in point.trainable()])

    start = way(_adapt(case, emission, _others(case, emission), images(1)[:0], Objective()))
    moved, other = way(single)[: len(start)], way(half)[: len(start)]
    assert float((moved - other).norm()) < 0.2 * float((moved - start).norm())
