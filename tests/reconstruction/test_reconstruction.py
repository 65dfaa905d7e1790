"""Sequential reconstruction: the least-squares optimum at every layer, on the inputs that the student really has."""

import copy
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress.allocation import allocate
from hypercompress.data.embedded import fashion_mnist_mini
from hypercompress.fidelity import compare
from hypercompress.generator import ANALYTIC
from hypercompress.inspection import inspect
from hypercompress.kinds import factors_of
from hypercompress.models import load_model
from hypercompress.reconstruction import reconstruct
from hypercompress.reconstruction.layer_regression import LayerRegression
from hypercompress.sketch import sketch
from hypercompress.specs import Budget, Factors, Generation, ModelSpec, RankPlan, Unit
from hypercompress.student import Student, build_student, low_rank_layers
from tests.reconstructed import images, made, network


def pixels(*, train: bool) -> Tensor:
    return (torch.from_numpy(fashion_mnist_mini(train=train).images[:256]).float()[:, None] / 255 - 0.286) / 0.353


def seen(model: nn.Module, names: list[str], x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of each named module."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _m, i, o, name=name: found.__setitem__(name, (i[0].detach(), o.detach()))
        )
        for name in names
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return found


def rows(t: Tensor) -> Tensor:
    return t.movedim(1, -1).flatten(0, -2) if t.ndim == 4 else t


@pytest.mark.parametrize("both", [False, True])
def test_every_output_factor_is_the_least_squares_fit_on_the_students_own_inputs(both: bool) -> None:
    """Against `torch.linalg.lstsq` on what hooks see after the fact: the fixed point proves the order as well."""
    teacher, x = network(), images()
    spec, sketches, student = made(teacher, x, 0.35)
    assert set(student.ranks) == {"0", "3", "6"}
    reconstruct(teacher, student, spec, sketches, x, both=both, ridge=0.0, spread=0.0)
    wanted, got = seen(teacher, list(student.ranks), x), seen(student.model, list(student.ranks), x)
    for name, layer in low_rank_layers(student.model).items():
        h, y = rows(layer.reduce(got[name][0])), rows(wanted[name][1])
        if name != "6":  # nothing absorbs an intercept there
            h = torch.cat([h, torch.ones(len(h), 1, dtype=h.dtype)], 1)
        solution = torch.linalg.lstsq(h, y).solution
        torch.testing.assert_close(layer.expand.weight.flatten(1), solution[: layer.rank].T, rtol=1e-6, atol=1e-8)
        now = factors_of(layer)
        norms = now.expand.norm(dim=0), now.reduce.norm(dim=1)
        torch.testing.assert_close(*norms)  # balanced, for what trains it next
        if layer.bias is not None:
            torch.testing.assert_close(layer.bias, solution[-1], rtol=1e-6, atol=1e-8)
    fitted = rows(got["0"][1]) + (student.model[1].bias - teacher[1].bias) * (
        (teacher[1].running_var + teacher[1].eps).sqrt() / teacher[1].weight
    )
    torch.testing.assert_close(fitted.mean(0), rows(wanted["0"][1]).mean(0))


def test_a_heavy_ridge_keeps_the_generated_student() -> None:
    """What the generator changed in the norms moves into the layers, and nothing else happens."""
    teacher, x = network(), images()
    spec, sketches, student = made(teacher, x, 0.35)
    expected = student(x)
    assert not torch.equal(student.model[1].weight, teacher[1].weight)
    reconstruct(teacher, student, spec, sketches, x, both=False, ridge=1e12, spread=0.0)
    assert torch.equal(student.model[1].weight, teacher[1].weight)
    torch.testing.assert_close(student(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["svd", "whitened", "kfac"])
def test_held_out_kl_falls_on_a_deep_network(name: str) -> None:
    teacher, _ = load_model(str(files("hypercompress") / "pretrained" / "fashion_mnist_teacher"))
    x, held_out = (pixels(train=train) for train in (True, False))
    spec, sketches, student = made(teacher, x, 0.06, name)
    before = compare(teacher, student, [held_out]).kl
    untouched = copy.deepcopy(teacher.state_dict())
    single = copy.deepcopy(student)
    reconstruct(teacher, single, spec, sketches, x, both=False)
    reconstruct(teacher, student, spec, sketches, x)
    one, two = (compare(teacher, refitted, [held_out]).kl for refitted in (single, student))
    assert two < 0.95 * one
    assert one < 0.8 * before
    assert all(torch.equal(untouched[key], value) for key, value in teacher.state_dict().items())
    assert not any(module._forward_hooks for model in (teacher, student) for module in model.modules())


def test_a_lossless_student_stays_as_it_is() -> None:
    teacher, x = network(), images()
    spec = inspect(teacher, x[:2])
    sketches = sketch(teacher, spec, [x])
    known = ANALYTIC["kfac"].directions(spec, sketches)
    frames = known.outputs
    names = ("0", "3", "6")
    factors = {n: frames[n].factors(sketches[n].weight, len(frames[n].energy)) for n in names}
    generation = ANALYTIC["kfac"].generate(spec, sketches, Budget(params=1.0))
    plan = allocate(spec, ANALYTIC["kfac"].energies(frames), Budget(params=1.0), nats=True)
    whole = Generation(
        type(generation.factors)(factors, {}),
        type(plan)({n: factors[n].rank for n in names}, plan.unit, plan.cost, plan.achieved, 0.0),
        "kfac",
        0.0,
    )
    student = build_student(teacher, spec, whole)
    torch.testing.assert_close(student(x), teacher(x))
    reconstruct(teacher, student, spec, sketches, x)
    torch.testing.assert_close(student(x), teacher(x))


def test_too_few_rows_leave_the_directions() -> None:
    torch.manual_seed(0)
    teacher = (
        nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 36), nn.ReLU(), nn.Linear(36, 5)).double().eval()
    )
    x = torch.randn(200, 40, dtype=torch.float64)
    spec, sketches, student = made(teacher, x, 0.5)
    alone = copy.deepcopy(student)
    fitted = reconstruct(teacher, student, spec, sketches, x[:16])
    assert fitted == {"0": "outputs", "2": "both", "4": "outputs"}  # of 40, 30 and 36 inputs
    assert set(reconstruct(teacher, alone, spec, sketches, x[:16], both=False).values()) == {"outputs"}
    ours, theirs = (low_rank_layers(network.model) for network in (student, alone))
    assert torch.equal(ours["0"].reduce.weight, theirs["0"].reduce.weight)
    assert not torch.equal(ours["2"].reduce.weight, theirs["2"].reduce.weight)


def two_sided(teacher: nn.Module, x: Tensor, rank: int, project: Tensor) -> tuple[ModelSpec, Any, Student, Student]:
    """A student whose first layer is factored and whose second is so on one side, and one where it is on both."""
    spec = inspect(teacher, x[:2])
    sketches = sketch(teacher, spec, [x])
    frames, students = ANALYTIC["kfac"].directions(spec, sketches).outputs, []
    first, second = (layer.name for layer in spec.candidates)
    plain = {name: frames[name].factors(sketches[name].weight, r) for name, r in ((first, 8), (second, rank))}
    inward = torch.linalg.pinv(project)
    kernel = torch.einsum("rct,cq->rqt", plain[second].reduce.unflatten(1, (len(inward), -1)), inward).flatten(1)
    both = {**plain, second: replace(plain[second], reduce=kernel, project=project)}
    for factors, inner in ((plain, {}), (both, {second: len(project)})):
        plan = RankPlan({name: f.rank for name, f in factors.items()}, Unit.PARAMS, 0, 0.0, None, inner)
        students.append(build_student(teacher, spec, Generation(Factors(factors, {}), plan, "kfac", 0.0)))
    return spec, sketches, students[0], students[1]


def convolutions(out: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 12, 5), nn.ReLU(), nn.Conv2d(12, out, (1, 2)), nn.ReLU()).double().eval()


def test_a_layer_factored_on_both_sides_is_fitted_behind_its_projection() -> None:
    """With all input channels kept, turned, it is the layer that is factored on one side."""
    teacher, x = convolutions(9), images()
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)).Q
    spec, sketches, plain, both = two_sided(teacher, x, 4, turn)
    torch.testing.assert_close(both(x), plain(x))
    before = plain(x)
    for student in (plain, both):
        assert reconstruct(teacher, student, spec, sketches, x) == {"0": "both", "2": "both"}
    torch.testing.assert_close(both(x), plain(x))
    assert not torch.allclose(plain(x), before, rtol=1e-2)


def test_where_curvature_lies_on_the_inputs_of_such_a_layer_its_directions_stay() -> None:
    teacher, x = convolutions(40), images()
    project = torch.linalg.qr(torch.randn(12, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)).Q.T
    spec, sketches, plain, both = two_sided(teacher, x, 6, project)
    alone = copy.deepcopy(both)
    assert reconstruct(teacher, plain, spec, sketches, x) == {"0": "both", "2": "both"}
    assert reconstruct(teacher, both, spec, sketches, x) == {"0": "both", "2": "outputs"}
    products = [factors_of(low_rank_layers(student.model)["2"]).product() for student in (both, alone)]
    assert torch.linalg.matrix_rank(torch.cat(products), rtol=1e-8) == 6  # the same rows, put together otherwise
    assert not torch.allclose(both(x), alone(x), rtol=1e-2)


@pytest.mark.parametrize("bias", [True, False])
def test_a_regression_on_inputs_far_from_zero(bias: bool) -> None:
    """As in float64, with an intercept and without: there the distance itself is to be fitted."""
    torch.manual_seed(0)
    teacher, x = nn.Sequential(nn.Linear(12, 10, bias=bias)).double().eval(), torch.randn(400, 12).double() + 1e4
    spec, sketches, student = made(teacher, x, 0.5)
    module, found = low_rank_layers(student.model)["0"], []
    for dtype in (torch.float64, torch.float32):
        dense, sketched = copy.deepcopy(teacher[0]).to(dtype), copy.deepcopy(module).to(dtype)
        regression = LayerRegression(spec.candidates[0], dense, sketches["0"], 1e-2, centred=bias)
        with torch.no_grad():
            assert regression(sketched, x.to(dtype), teacher[0](x).to(dtype))
        found.append(factors_of(sketched).product().double())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)
