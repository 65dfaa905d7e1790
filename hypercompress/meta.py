"""One meta-training step as a pure function of a hypernetwork, a teacher and a batch.

The student is never built: the teacher is called with generated weights (`torch.func.functional_call`). The loss is
the KL to the teacher plus a share of un-pooled feature error, at the generated weights or, with look-ahead, after k
steps of distillation from them. Look-ahead is first order (FOMAML, Finn et al. 2017, sec. 5.2): the gradient with
respect to the *matrix* ``expand @ reduce`` at the adapted point is applied at the generated one. The matrix, and not
the factors, because a discarded direction has no gradient in the factors: that is how a rank can grow.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from hypercompress.allocation import pareto
from hypercompress.factorize import balanced
from hypercompress.generator.emission import Emission, Start, corrected, emit, start_of
from hypercompress.generator.hypernetwork import Hypernetwork, channel_changes, on_device, tokens_of
from hypercompress.generator.protocol import Sketches
from hypercompress.inspection import inspect
from hypercompress.losses import distillation_kl, feature_loss, watching
from hypercompress.sketch import sketch
from hypercompress.specs import Budget, ModelSpec, Side, Unit


@dataclass(frozen=True)
class Objective:
    """What a meta-step minimises.

    Args:
        features: weight of the feature error beside the KL.
        floor: nats; the loss is ``log(KL + floor)``, so that easy and hard budgets weigh the same.
        inner_rate: learning rate of the look-ahead's Adam steps.
        curvature: weight of the regression to measured curvature, without data.
    """

    features: float = 0.1
    floor: float = 0.02
    inner_rate: float = 1e-3
    curvature: float = 0.3


@dataclass(frozen=True)
class Case:
    """A teacher prepared for meta-training: all that does not change from step to step.

    Args:
        starts: the analytic start with measured curvature and the one without.
        sketches: with measured curvature, and without.
        watched: dotted paths of the modules whose outputs are compared.
        shares: for each unit the range of budgets worth learning on (hardest, easiest).
    """

    name: str
    teacher: nn.Module
    spec: ModelSpec
    starts: Mapping[bool, Start]
    sketches: Mapping[bool, Sketches]
    watched: tuple[str, ...]
    shares: Mapping[Unit, tuple[float, float]]


def prepare_case(
    name: str,
    teacher: nn.Module,
    batches: Sequence[Tensor],
    *,
    easiest_kl: float = 2e-3,
    watched: int = 4,
    seed: int = 0,
) -> Case:
    """Inspect a teacher and measure its curvature once.

    Args:
        batches: calibration images.
        easiest_kl: predicted nats of KL at which a budget is too easy to learn from.
        watched: number of feature maps to compare, spread over the depth.
    """
    teacher = teacher.eval().requires_grad_(False)
    spec = inspect(teacher, batches[0][:2])
    device = batches[0].device
    sketches: dict[bool, Sketches] = {
        True: sketch(teacher, spec, batches, seed=seed),
        False: sketch(teacher, spec, None),
    }
    exact = {measured: start_of(spec, sketches[measured]) for measured in (True, False)}
    starts = {measured: on_device(start, device, torch.float32) for measured, start in exact.items()}
    shares = {}
    for unit in Unit:
        points = pareto(spec, exact[True].energies, unit)
        easiest = next((p.share for p in points if p.predicted_kl < easiest_kl), 1.0)
        least = points[0].share
        shares[unit] = (max(least, min(least * 1.02, easiest * 0.9)), easiest)
    places = [
        spec.candidates[round(i)]
        for i in torch.linspace(min(1, len(spec.candidates) - 1), len(spec.candidates) - 1, watched).tolist()
    ]
    names = tuple(dict.fromkeys(layer.follower or layer.name for layer in places))
    return Case(name, teacher, spec, starts, sketches, names, shares)


def sample_budget(case: Case, generator: torch.Generator, *, measured: bool = True) -> Budget:
    """A budget of either unit, log-uniform over the range worth learning on."""
    unit = (Unit.PARAMS, Unit.MACS)[int(torch.randint(2, (), generator=generator))]
    return budget_at(case, unit, float(torch.rand((), generator=generator)), measured=measured)


def budget_at(case: Case, unit: Unit, place: float, *, measured: bool = True) -> Budget:
    """The budget at ``place`` in [0, 1] of the range worth learning on: 0 is the hardest.

    Without data every student is worse, so the range lies higher: from the geometric middle of that with data on.
    """
    low, high = case.shares[unit]
    share = min(max(low, 0.9), low * (high / low) ** (place if measured else 0.5 + place))
    return Budget(params=share) if unit is Unit.PARAMS else Budget(macs=share)


def generate(
    network: Hypernetwork, case: Case, budget: Budget, steps: int, *, measured: bool, strength: float = 1.0
) -> tuple[Emission, Float[Tensor, ""]]:
    """Emission with masks, and the curvature regression loss (zero with data).

    ``strength=0`` is the analytic student, for comparison.
    """
    start, sketches = case.starts[measured], case.sketches[measured]
    outputs = network(tokens_of(case.spec, sketches, start, budget, steps), measured)
    regression = outputs.weight.new_zeros(())
    if not measured and strength > 0:
        changes = channel_changes(network, case.spec, sketches, start, outputs)
        regression = curvature_error(case, changes, outputs.weight)
        # The frames' own gradient is left out: eigenvectors of near-equal values have none worth following.
        with torch.no_grad():
            start = corrected(
                case.spec, sketches, start, {n: change.detach() * strength for n, change in changes.items()}
            )
            start = on_device(start, outputs.weight.device, torch.float32)
    return emit(case.spec, sketches, start, outputs.scaled(strength), budget, training=True), regression


def curvature_error(case: Case, changes: Mapping[str, Tensor], weight: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """How far corrected guesses are from measured curvature: log diagonals in each layer, log totals across layers."""
    errors, totals = [], []
    for layer in case.spec.candidates:
        guess, true = case.starts[False].curvatures[layer.name], case.starts[True].curvatures[layer.name]
        if guess.side is Side.OUTPUT:
            ours, theirs = guess.fisher.diagonal(), true.fisher.diagonal()
        else:
            ours, theirs = guess.signal.diagonal() - guess.mean**2, true.signal.diagonal() - true.mean**2
        floor = theirs.max() * 1e-4 + 1e-30
        target = (theirs.clamp_min(floor)).log() - ours.clamp_min(1e-30).log()
        miss = changes[layer.name] - target
        errors.append(((miss - miss.mean()).clamp(-4, 4) ** 2).mean())
        totals.append(case.starts[True].energies[layer.name].sum().clamp_min(1e-30).log())
    total = torch.stack(totals).to(weight.dtype)
    miss = weight - total
    return torch.stack(errors).mean() + ((miss - miss.mean()).clamp(-6, 6) ** 2).mean()


def matrices(emission: Emission) -> dict[str, Tensor]:
    """Name of each factored layer -> its matrix, differentiable in everything that was generated."""
    found = {}
    for name, layer in emission.layers.items():
        expand = layer.expand if layer.mask is None else layer.expand * layer.mask
        found[name] = expand @ layer.reduce
    return found


def student_loss(
    case: Case, parameters: Mapping[str, Tensor], images: Tensor, objective: Objective
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """``(KL + weighted feature error, KL)`` of the teacher called with other ``parameters``."""
    with watching(case.teacher, case.watched) as seen:
        with torch.no_grad():
            target = case.teacher(images)
        theirs = list(seen)
        seen.clear()
        output = functional_call(case.teacher, dict(parameters), (images,))
        kl = distillation_kl(output, target)
        if objective.features == 0 or not theirs:
            return kl, kl
        return kl + objective.features * feature_loss(seen, theirs), kl


@dataclass(frozen=True)
class _Point:
    """A student's trainable tensors: factors of factored layers, and every other parameter by name."""

    expand: dict[str, Tensor]
    reduce: dict[str, Tensor]
    other: dict[str, Tensor]

    def tensors(self) -> list[Tensor]:
        return [*self.expand.values(), *self.reduce.values(), *self.other.values()]

    def parameters(self, case: Case, products: Mapping[str, Tensor]) -> dict[str, Tensor]:
        shapes = {name: case.teacher.get_parameter(f"{name}.weight").shape for name in products}
        return {**self.other, **{f"{name}.weight": product.reshape(shapes[name]) for name, product in products.items()}}


def _others(case: Case, emission: Emission) -> dict[str, Tensor]:
    """Norm parameters and biases that the emission changes, at their new values."""
    found = {f"{name}.bias": layer.bias for name, layer in emission.layers.items() if layer.bias is not None}
    for name, delta in emission.deltas.items():
        found[name] = case.teacher.get_parameter(name) + delta
    return found


def meta_loss(
    case: Case,
    emission: Emission,
    batches: Sequence[Float[Tensor, "b c h w"]],
    objective: Objective,
) -> tuple[Float[Tensor, ""], float]:
    """A scalar whose gradient is the meta-gradient, and the KL it stands for.

    Args:
        batches: k inner batches and one for the outer loss; one batch means no look-ahead.
    """
    products, others = matrices(emission), _others(case, emission)
    point = _adapt(case, emission, others, batches[:-1], objective)
    leaves = {n: (point.expand[n] @ point.reduce[n]).detach().requires_grad_() for n in products}
    outer = {n: point.other[n].detach().requires_grad_() for n in others}
    frozen = {n: t.detach() for n, t in point.other.items() if n not in outer}
    parameters = _Point(point.expand, point.reduce, {**frozen, **outer}).parameters(case, leaves)
    loss, kl = student_loss(case, parameters, batches[-1], objective)
    loss = (loss + objective.floor).log()
    keys = [*leaves.values(), *outer.values()]
    gradients = torch.autograd.grad(loss, keys, materialize_grads=True)
    generated = [*products.values(), *(others[n] for n in outer)]
    terms = [(g.detach() * t).sum() for g, t in zip(gradients, generated, strict=True)]
    surrogate = torch.stack(terms).sum()
    # The value is the loss, the gradient the surrogate's.
    return loss.detach() + surrogate - surrogate.detach(), float(kl.detach())


def _adapt(
    case: Case,
    emission: Emission,
    others: Mapping[str, Tensor],
    batches: Sequence[Tensor],
    objective: Objective,
) -> _Point:
    """The generated student after one Adam step of distillation on each batch."""
    expand, reduce = {}, {}
    for name, layer in emission.layers.items():
        keep = slice(None) if layer.mask is None else slice(0, emission.plan.ranks[name])
        pair = balanced(layer.expand[:, keep].detach(), layer.reduce[keep].detach())
        expand[name], reduce[name] = pair.expand.requires_grad_(), pair.reduce.requires_grad_()
    point = _Point(expand, reduce, {n: t.detach().clone().requires_grad_() for n, t in others.items()})
    if not batches or not point.tensors():
        return point
    # Every other parameter learns too, as it does when the user distils.
    for name, parameter in case.teacher.named_parameters():
        owner = name.rpartition(".")[0]
        if name not in point.other and not (owner in expand and name.endswith(".weight")):
            point.other[name] = parameter.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam(point.tensors(), lr=objective.inner_rate)
    for images in batches:
        products = {name: expand[name] @ reduce[name] for name in expand}
        loss, _ = student_loss(case, point.parameters(case, products), images, objective)
        gradients = torch.autograd.grad(loss, point.tensors(), allow_unused=True)
        for tensor, gradient in zip(point.tensors(), gradients, strict=True):
            tensor.grad = gradient
        optimiser.step()
    return point


def evaluate_case(
    network: Hypernetwork,
    case: Case,
    budget: Budget,
    batches: Sequence[Tensor],
    *,
    steps_batches: Sequence[Tensor] = (),
    measured: bool = True,
    strength: float = 1.0,
    objective: Objective | None = None,
) -> float:
    """KL on ``batches`` of the generated student, after distillation on ``steps_batches`` if there are any."""
    objective = objective or Objective()
    with torch.no_grad():
        emission, _ = generate(network, case, budget, len(steps_batches), measured=measured, strength=strength)
        others = _others(case, emission)
    point = _adapt(case, emission, others, steps_batches, objective)
    with torch.no_grad():
        products = {name: point.expand[name] @ point.reduce[name] for name in point.expand}
        parameters = point.parameters(case, products)
        kls = [float(student_loss(case, parameters, images, objective)[1]) for images in batches]
    return math.fsum(kls) / len(kls)
