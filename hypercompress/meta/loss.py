"""The loss of one meta-training step, and the KL that validation compares.

The loss is the KL to the teacher plus a share of un-pooled feature error, of the student that the user will have: as
generated, after k steps of distillation, or after the refit of `reconstruction/`. The teacher is called with the
student's weights (`torch.func.functional_call`). Both adaptations are first order. Look-ahead (FOMAML, Finn et al.
2017, sec. 5.2): the gradient with respect to the *matrix* ``expand @ reduce`` at the adapted point is applied at the
generated one. The matrix, and not the factors, because a discarded direction has no gradient in the factors: that is
how a rank can grow. Refit: the fitted output factor is a constant, and the gradient goes to what it was fitted on, the
reduced directions and the ranks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from hypercompress.errors import GeneratorError
from hypercompress.fidelity import compare
from hypercompress.generator.emission import Emission
from hypercompress.generator.hypernetwork import Hypernetwork
from hypercompress.kinds import as_weight, low_rank_layers, matrix
from hypercompress.losses import distillation_kl, feature_loss, watching
from hypercompress.meta.case import Case
from hypercompress.meta.cost import cost_share
from hypercompress.meta.proposal import generate
from hypercompress.reconstruction import reconstruct
from hypercompress.specs import Budget, Generation, LayerFactors, Unit
from hypercompress.student import build_student


@dataclass(frozen=True)
class Objective:
    """What a meta-step minimises.

    Args:
        features: weight of the feature error beside the KL.
        floor: nats; the loss is ``log(KL + floor)``, so that easy and hard budgets weigh the same.
        inner_rate: learning rate of the look-ahead's Adam steps.
        curvature: weight of the regression to measured curvature, without data.
        size, compute, latency: weights of the logarithms of the student's parameters, multiply-accumulates and time as
            shares of the teacher's, beside the logarithm above, which has weight 1. A budget fixes one of them; the
            weights say what the others are worth: 0.1 means that a tenth less of them makes up for 1 % more KL.

    Raises:
        GeneratorError: a weight below 0, or a floor or a rate that is not above 0.
    """

    features: float = 0.1
    floor: float = 0.02
    inner_rate: float = 1e-3
    curvature: float = 0.3
    size: float = 0.0
    compute: float = 0.0
    latency: float = 0.0

    def __post_init__(self) -> None:
        weights = {key: getattr(self, key) for key in ("features", "curvature", "size", "compute", "latency")}
        faults = [f"{key} {weight:g}" for key, weight in weights.items() if not weight >= 0]
        faults += [f"{key} {value:g}" for key in ("floor", "inner_rate") if not (value := getattr(self, key)) > 0]
        if faults:
            raise GeneratorError(
                f"received an objective with {', '.join(faults)}; expected weights of 0 or more, floor and inner_rate "
                "above 0; change them"
            )

    @property
    def costs(self) -> dict[Unit, float]:
        """The weights of costs that are not 0."""
        weights = {Unit.PARAMS: self.size, Unit.MACS: self.compute, Unit.LATENCY: self.latency}
        return {unit: weight for unit, weight in weights.items() if weight}


def compression_loss(case: Case, emission: Emission, objective: Objective) -> Float[Tensor, ""]:
    """The weighted logarithms of what the student costs, in its counted units and in time; 0 without weights.

    Raises:
        BudgetError: time has a weight, and the case was prepared without times.
    """
    terms = [
        weight * cost_share(case.timed or case.spec, emission, unit).log() for unit, weight in objective.costs.items()
    ]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def student_loss(
    case: Case, tensors: Mapping[str, Tensor], images: Tensor, objective: Objective, *, training: bool = False
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """``(KL + weighted feature error, KL)`` of the teacher called with other parameters and buffers.

    Args:
        tensors: what differs from the teacher, by name. Buffers in it are written to by norms in training mode.
        training: call the student in training mode, as distillation does.
    """
    with watching(case.teacher, case.watched) as seen:
        with torch.no_grad():
            target = case.teacher(images)
        theirs = list(seen)
        seen.clear()
        case.teacher.train(training)
        try:
            output = functional_call(case.teacher, dict(tensors), (images,))
        finally:
            case.teacher.eval()
        kl = distillation_kl(output, target)
        if objective.features == 0 or not theirs:
            return kl, kl
        return kl + objective.features * feature_loss(seen, theirs), kl


@dataclass(frozen=True)
class _Point:
    """A student's trainable tensors: factors of factored layers, and every other parameter by name; and its buffers."""

    factors: dict[str, LayerFactors]
    other: dict[str, Tensor]
    buffers: dict[str, Tensor]

    def trainable(self) -> list[Tensor]:
        parts = [part for f in self.factors.values() for part in (f.expand, f.reduce, f.project)]
        return [*(part for part in parts if part is not None), *self.other.values()]

    def products(self) -> dict[str, Tensor]:
        """The matrix of each factored layer."""
        return {name: f.product() for name, f in self.factors.items()}

    def tensors(self, case: Case, products: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """For `student_loss`."""
        return {**self.buffers, **self.other, **_weights(case, products)}


def _weights(case: Case, products: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as the weights of their layers."""
    layers = {name: case.teacher.get_submodule(name) for name in products}
    return {f"{name}.weight": as_weight(layer, products[name]) for name, layer in layers.items()}


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
    refit: Float[Tensor, "n c h w"] | None = None,
) -> tuple[Float[Tensor, ""], float]:
    """A scalar whose gradient is the meta-gradient, and the KL it stands for; without `compression_loss`.

    Args:
        batches: k inner batches and one for the outer loss; one batch means no look-ahead.
        refit: images to refit the student on, instead of look-ahead.
    """
    if refit is not None:
        loss, kl = _refitted_loss(case, emission, refit, batches[-1], objective)
        return loss, float(kl.detach())
    products = {name: layer.matrix() for name, layer in emission.layers.items()}
    others = _others(case, emission)
    point = _adapt(case, emission, others, batches[:-1], objective)
    leaves = {n: product.detach().requires_grad_() for n, product in point.products().items()}
    outer = {n: point.other[n].detach().requires_grad_() for n in others}
    frozen = {n: t.detach() for n, t in point.other.items() if n not in outer}
    adapted = _Point(point.factors, {**frozen, **outer}, point.buffers)
    loss, kl = student_loss(case, adapted.tensors(case, leaves), batches[-1], objective)
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
    """The generated student after one Adam step of distillation on each batch, norms in training mode."""
    factors = emission.factors().layers
    leaves = {
        n: replace(
            f,
            expand=f.expand.requires_grad_(),
            reduce=f.reduce.requires_grad_(),
            project=None if f.project is None else f.project.requires_grad_(),
        )
        for n, f in factors.items()
    }
    point = _Point(leaves, {n: t.detach().clone().requires_grad_() for n, t in others.items()}, {})
    if not batches or not point.trainable():
        return point
    # Every other parameter learns too, as it does when the user distils.
    factored = {id(case.teacher.get_parameter(f"{name}.weight")) for name in leaves}  # they may have other names too
    for name, parameter in case.teacher.named_parameters():
        if name not in point.other and id(parameter) not in factored:
            point.other[name] = parameter.detach().clone().requires_grad_()
    point.buffers.update({name: buffer.clone() for name, buffer in case.teacher.named_buffers()})
    optimiser = torch.optim.Adam(point.trainable(), lr=objective.inner_rate)
    for images in batches:
        loss, _ = student_loss(case, point.tensors(case, point.products()), images, objective, training=True)
        gradients = torch.autograd.grad(loss, point.trainable(), allow_unused=True)
        for tensor, gradient in zip(point.trainable(), gradients, strict=True):
            tensor.grad = gradient
        optimiser.step()
        torch.clear_autocast_cache()  # it holds the casts of what has just been changed
    return point


def _refitted_loss(
    case: Case, emission: Emission, refit: Tensor, images: Tensor, objective: Objective
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Log loss of the student after the refit, and its KL; differentiable in reduced directions and masks."""
    student = _refitted(case, emission, refit)
    fitted, products = low_rank_layers(student), {}
    for name, layer in emission.layers.items():
        rank = emission.plan.ranks[name]
        reduce, expand = (matrix(p, fitted[name].groups).detach() for p in (fitted[name].reduce, fitted[name].expand))
        # The refit has scaled its directions anew; `reduce` comes after the projection of the input channels.
        ours = layer.reduce if layer.inner is None else layer.inner.project(layer.reduce, layer.taps)
        scale = reduce.norm(dim=-1) / ours[..., :rank, :].detach().norm(dim=-1).clamp_min(1e-30)
        expand = torch.cat([expand * scale[..., None, :], layer.expand[..., rank:].detach()], -1)
        products[name] = (expand if layer.mask is None else expand * layer.mask) @ ours
    others = {name: value.detach() for name, value in student.named_parameters()}
    others |= {f"{name}.bias": layer.bias.detach() for name, layer in fitted.items() if layer.bias is not None}
    known = {name for name, _ in case.teacher.named_parameters()}
    tensors = {name: value for name, value in others.items() if name in known} | _weights(case, products)
    loss, kl = student_loss(case, tensors, images, objective)
    return (loss + objective.floor).log(), kl


def _refitted(case: Case, emission: Emission, images: Tensor) -> nn.Module:
    """The student as a network, refitted on ``images``."""
    student = build_student(case.teacher, case.spec, Generation(emission.factors(), emission.plan, "", 0.0))
    # Of both factors nothing that a hypernetwork says of directions would be left to learn from.
    reconstruct(case.teacher, student, case.spec, case.sketches[True], images, both=False)
    return student.model


def evaluate_case(  # noqa: PLR0913  (each has a default)
    network: Hypernetwork,
    case: Case,
    budget: Budget,
    batches: Sequence[Tensor],
    *,
    steps_batches: Sequence[Tensor] = (),
    refit: Tensor | None = None,
    measured: bool = True,
    strength: float = 1.0,
    objective: Objective | None = None,
) -> float:
    """KL on the images of ``batches`` of the generated student, after distillation on ``steps_batches`` or a refit, if
    given.
    """
    objective = objective or Objective()
    with torch.no_grad():
        emission, _ = generate(network, case, budget, measured=measured, refit=refit is not None, strength=strength)
        others = _others(case, emission)
    if refit is not None:
        return compare(case.teacher, _refitted(case, emission, refit), batches).kl
    point = _adapt(case, emission, others, steps_batches, objective)
    with torch.no_grad():
        tensors = point.tensors(case, point.products())
        kls = [len(images) * float(student_loss(case, tensors, images, objective)[1]) for images in batches]
    return math.fsum(kls) / sum(map(len, batches))
