"""Sequential reconstruction: the least-squares optimum at every layer, on the inputs that the student really has."""

import copy
import threading
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress.allocation import allocate
from hypercompress.data.embedded import fashion_mnist_mini
from hypercompress.errors import ModelError
from hypercompress.factorize import Metric, least_squares, reduced_rank, weighted_frame
from hypercompress.fidelity import compare
from hypercompress.generator import ANALYTIC
from hypercompress.inspection import inspect
from hypercompress.kinds import factors_of
from hypercompress.layer_regression import LayerRegression
from hypercompress.models import load_model
from hypercompress.reconstruction import reconstruct
from hypercompress.sketch import sketch
from hypercompress.specs import Budget, Curvature, Factors, Generation, ModelSpec, RankPlan, Side, Unit
from hypercompress.student import Student, build_student, low_rank_layers


def network() -> nn.Module:
    """Every way to take an intercept: BatchNorm, bias, none; two layers after the first so that errors add up."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 24, 5, padding=2, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 9, 24, bias=False),
        nn.ReLU(),
        nn.Linear(24, 5),
    )
    with torch.no_grad():
        model[1].running_mean.uniform_(-1, 1)
        model[1].running_var.uniform_(0.5, 2)
        model[1].weight.uniform_(0.5, 1.5)
        model[1].bias.uniform_(-0.5, 0.5)
    return model.double().eval()


def images(count: int = 96, seed: int = 1) -> Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.3


def pixels(*, train: bool) -> Tensor:
    return (torch.from_numpy(fashion_mnist_mini(train=train).images[:256]).float()[:, None] / 255 - 0.286) / 0.353


def made(teacher: nn.Module, x: Tensor, share: float, name: str = "kfac") -> tuple[ModelSpec, Any, Student]:
    spec = inspect(teacher, x[:2])
    sketches = sketch(teacher, spec, x.split(32))
    return spec, sketches, build_student(teacher, spec, ANALYTIC[name].generate(spec, sketches, Budget(params=share)))


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


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("out", "d"), [(6, 9), (9, 6)])
def test_reduced_rank_regression_is_the_best_of_its_rank(out: int, d: int, groups: int) -> None:
    """No matrix of rank r has a smaller error in the metric G: against the truncated SVD of the whitened regression."""
    generator = torch.Generator().manual_seed(out)

    def normal(*shape: int) -> Tensor:
        return torch.randn(groups, *shape, generator=generator, dtype=torch.float64)

    weight, seen, gradients = normal(out, d), normal(400, d), normal(60, out)
    got = seen @ (torch.eye(d) + 0.4 * normal(d, d)) + 0.3 * normal(400, d)  # what the layers before made of it
    y, fisher = seen @ weight.mT, gradients.mT @ gradients / 60
    side = Side.OUTPUT if out <= d else Side.INPUT
    gram = weight @ weight.mT if side is Side.OUTPUT else weight.mT @ weight
    held = fisher if side is Side.OUTPUT else weight.mT @ fisher @ weight
    parts = (weight, gram, held, got.mT @ got / 400, y.mT @ got / 400)
    weight, gram, held, moment, cross = (part if groups > 1 else part[0] for part in parts)
    curvature = Curvature(side, gram, held, gram, gram.new_zeros(gram.shape[:-1]))
    factors = reduced_rank(weight, curvature, moment, cross, 3, 0.0)
    products = factors.product().reshape(groups, out, d)
    for product, g, x, wanted in zip(products, fisher, got, y, strict=True):

        def error(matrix: Tensor, g: Tensor = g, x: Tensor = x, wanted: Tensor = wanted) -> float:
            return float(((wanted - x @ matrix.T) @ root(g)).square().sum())

        free = torch.linalg.lstsq(x, wanted).solution.T
        a, b = root(g), root(x.T @ x)
        u, s, v = torch.linalg.svd(a @ free @ b, full_matrices=False)
        best = torch.linalg.solve(a, (u[:, :3] * s[:3]) @ v[:3]) @ torch.linalg.inv(b)
        assert torch.linalg.matrix_rank(product) == 3
        # The damping of the metric is all that keeps it from the optimum.
        assert error(best) * (1 - 1e-9) <= error(product) <= 1.001 * error(best)


@pytest.mark.parametrize("side", Side)
def test_inputs_that_did_not_change_give_the_directions_of_kfac(side: Side) -> None:
    generator = torch.Generator().manual_seed(3)
    x, g = (torch.randn(200, n, generator=generator, dtype=torch.float64) for n in (7, 7))
    weight = torch.randn(7, 7, generator=generator, dtype=torch.float64)
    moment, fisher = x.T @ x / 200, g.T @ g / 200
    if side is Side.OUTPUT:
        curvature = Curvature(side, weight @ moment @ weight.T, fisher, weight @ weight.T, torch.zeros(7).double())
    else:
        curvature = Curvature(side, moment, weight.T @ fisher @ weight, weight.T @ weight, torch.zeros(7).double())
    expected = weighted_frame(curvature, Metric(centred=False)).factors(weight, 3)
    got = reduced_rank(weight, curvature, moment, weight @ moment, 3, 0.01)
    torch.testing.assert_close(got.product(), expected.product(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("intercept", [True, False])
def test_ridge_goes_from_the_fit_to_the_start(intercept: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    h, y, start = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((50, 4), (50, 3), (3, 4)))
    h = h + 0.7
    shift = torch.randn(3, generator=generator, dtype=torch.float64) if intercept else None
    fits = [least_squares(h, y, start, shift, ridge, 0.0) for ridge in (0.0, 0.1, 1e9)]

    def error(fit: tuple[Tensor, Tensor]) -> float:
        return float((y - h @ fit[0].T - fit[1]).pow(2).sum())

    assert error(fits[0]) < error(fits[1]) < error(fits[2])
    torch.testing.assert_close(fits[2][0], start, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fits[2][1], torch.zeros(3).double() if shift is None else shift, rtol=1e-6, atol=1e-6)
    # Against the normal equations with the ridge written as more rows.
    centred = h - h.mean(0) if intercept else h
    residual = y - h @ start.T - (0 if shift is None else shift)
    residual = residual - residual.mean(0) if intercept else residual
    weight = (0.1 * centred.pow(2).sum() / 4).sqrt()
    more = torch.cat([centred, weight * torch.eye(4).double()]), torch.cat([residual, torch.zeros(4, 3).double()])
    torch.testing.assert_close(fits[1][0], start + torch.linalg.lstsq(*more).solution.T)


def test_half_of_the_lost_variance_comes_back_and_the_mean_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    h, noise = (torch.randn(400, 3, generator=generator, dtype=torch.float64) + 0.5 for _ in range(2))
    y, start = h + noise, torch.zeros(3, 3).double()
    (bare, _), (fitted, shift) = (least_squares(h, y, start, torch.zeros(3), 0.0, spread) for spread in (0.0, 0.5))
    after, before, got = ((t - t.mean(0)).pow(2).mean(0) for t in (h @ bare.T, y, h @ fitted.T))
    torch.testing.assert_close(got, (after * before).sqrt())
    torch.testing.assert_close((h @ fitted.T + shift).mean(0), y.mean(0))


def test_nothing_comes_in_and_the_start_stays() -> None:
    start = torch.ones(2, 3)
    expand, shift = least_squares(torch.zeros(5, 3), torch.ones(5, 2), start, torch.zeros(2), 0.0, 0.0)
    torch.testing.assert_close(expand, start.double())
    torch.testing.assert_close(shift, torch.ones(2).double())


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


class Twice(nn.Module):
    """One layer called two times, and one that runs on a table without a batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 10, generator=torch.Generator().manual_seed(0)))
        self.first, self.again, self.place = nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu() + self.place(self.table).mean(0)
        return self.again(self.again(x).relu())


def test_layers_called_twice_or_without_a_batch_axis() -> None:
    torch.manual_seed(0)
    teacher, x = Twice().eval(), torch.randn(200, 10)
    spec, sketches, student = made(teacher, x, 0.5)
    assert len(student.ranks) == 3
    before = copy.deepcopy(student.state_dict())
    assert reconstruct(teacher, student, spec, sketches, x) == {"first": "both", "again": "none", "place": "both"}
    same = {key: torch.equal(before[key], value) for key, value in student.state_dict().items() if "expand.w" in key}
    assert same == {
        "model.first.expand.weight": False,
        "model.again.expand.weight": True,  # one fit cannot suit both of its inputs
        "model.place.expand.weight": False,
    }


@pytest.mark.parametrize("broken", ["teacher", "student"])
def test_an_error_on_either_side_surfaces_and_no_thread_stays(broken: str) -> None:
    teacher, x = network(), images()
    spec, sketches, student = made(teacher, x, 0.4)
    threads = threading.active_count()

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        output: Tensor = model(batch)
        if (model is teacher) is (broken == "teacher"):
            raise RuntimeError("out of luck")
        return output

    def early(model: nn.Module, batch: Tensor) -> Tensor:
        if (model is teacher) is (broken == "teacher"):
            raise RuntimeError("out of luck")
        output: Tensor = model(batch)
        return output

    with pytest.raises(RuntimeError, match="out of luck"):
        reconstruct(teacher, student, spec, sketches, x, early)
    if broken == "student":
        with pytest.raises(RuntimeError, match="out of luck"):
            reconstruct(teacher, student, spec, sketches, x, forward)
    assert threading.active_count() == threads
    assert not any(module._forward_hooks for model in (teacher, student) for module in model.modules())


@pytest.mark.parametrize("both", [True, False])
def test_what_the_teacher_writes_in_place_changes_nothing(both: bool) -> None:
    x, students = images(), []
    for inplace in (False, True):
        teacher = network()
        for place in (2, 4, 7):
            teacher[place] = nn.ReLU(inplace=inplace)
        spec, sketches, student = made(teacher, x, 0.35)
        reconstruct(teacher, student, spec, sketches, x, both=both)
        students.append(student.state_dict())
    assert {"model.0.expand.weight", "model.3.expand.weight", "model.6.expand.weight"} <= students[0].keys()
    for key, value in students[0].items():
        assert torch.equal(value, students[1][key]), key


def test_networks_that_run_another_order_are_refused() -> None:
    teacher, x = network(), images()
    spec, sketches, student = made(teacher, x, 0.35)

    def skipping(model: nn.Module, batch: Tensor) -> Tensor:
        return model[3:](batch[:, :1].repeat(1, 24, 1, 1)) if model is teacher else student.model(batch)

    with pytest.raises(ModelError, match="received a student that runs 0 where its teacher runs 3; expected one order"):
        reconstruct(teacher, student, spec, sketches, x, skipping)


def halved(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        output: Tensor = model(batch)
    return output


@pytest.mark.parametrize("way", ["outside", "inside"])
def test_autocast_changes_a_students_fidelity_by_rounding_only(way: str) -> None:
    """Around everything, or in a ``forward_fn``: no sum in bfloat16, no cast of factors that are there no more."""
    teacher, x, held_out = network().float(), images().float(), images(seed=2).float()
    forward, kls = (halved if way == "inside" else None), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled and way == "outside"):
            spec = inspect(teacher, x[:2])
            sketches = sketch(teacher, spec, x.split(32), forward_fn=forward if enabled else None)
            generation = ANALYTIC["kfac"].generate(spec, sketches, Budget(params=0.35))
            student = build_student(teacher, spec, generation)
            student(x[:2])
            fitted = reconstruct(teacher, student, spec, sketches, x, forward if enabled else None)
        assert fitted == {"0": "both", "3": "both", "6": "both"}
        kls.append(compare(teacher, student, [held_out]).kl)
    assert kls[1] == pytest.approx(kls[0], rel=0.05)


class Routed(nn.Module):
    """The first layer's sign chooses which samples the second one sees."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.expert, self.last = nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        chosen = (h[:, 0] > 0).nonzero()[:, 0]
        return self.last(h.index_add(0, chosen, self.expert(h[chosen]).relu()))


def test_a_layer_that_sees_other_samples_than_its_teachers_stays_as_it_is() -> None:
    torch.manual_seed(0)
    teacher, x = Routed().double().eval(), torch.randn(200, 10, dtype=torch.float64)
    spec, sketches, student = made(teacher, x, 0.5)
    before = copy.deepcopy(low_rank_layers(student.model)["expert"])
    fitted = reconstruct(teacher, student, spec, sketches, x)
    assert fitted == {"first": "both", "expert": "none", "last": "both"}
    torch.testing.assert_close(low_rank_layers(student.model)["expert"].weight * 1.0, before.weight * 1.0)


def test_a_model_that_runs_in_chunks_stays_as_it_is() -> None:
    """The example was one chunk, the batch is three: what the norms took over comes back with the factors."""
    teacher, x = network(), images()

    def chunked(model: nn.Module, batch: Tensor) -> Tensor:
        return torch.cat([model(part) for part in batch.split(32)])

    spec, sketches, student = made(teacher, x[:32], 0.35)
    expected = student(x)
    assert set(reconstruct(teacher, student, spec, sketches, x, chunked).values()) == {"none"}
    torch.testing.assert_close(student(x), expected)


class Called(nn.Module):
    """A layer called with a keyword, and one that reads a single vector."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(10, generator=torch.Generator().manual_seed(0)))
        self.first, self.named, self.vector = nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.named(input=self.first(x).relu()) + self.vector(self.token)


def test_a_layer_called_with_a_keyword_and_one_on_a_single_vector() -> None:
    torch.manual_seed(0)
    teacher, x = Called().double().eval(), torch.randn(200, 10, dtype=torch.float64)
    spec, sketches, student = made(teacher, x, 0.5)
    fitted = reconstruct(teacher, student, spec, sketches, x)
    assert fitted == {"first": "both", "named": "both", "vector": "outputs"}
    assert student(x).isfinite().all()


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
