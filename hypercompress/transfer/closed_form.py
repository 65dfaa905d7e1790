"""What is made of a model and a support set before any step: generated parameters, a ridge head, levels, views."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hypercompress.alone import drawing
from hypercompress.architecture import Architecture, Levels, ReadsLevels, architecture_of, read_last, read_levels
from hypercompress.errors import ModelError
from hypercompress.running.calling import device_of, evaluating
from hypercompress.running.copying import copy_of
from hypercompress.student import Student, network_of
from hypercompress.transfer.adaptable import Role, Site, adaptable
from hypercompress.transfer.apply import write
from hypercompress.transfer.backbone import Backbone
from hypercompress.transfer.levels import Weighing, find_levels, weigh
from hypercompress.transfer.nearness import Nearness, alike, nearness_of
from hypercompress.transfer.network import TransferNetwork
from hypercompress.transfer.reading import Reading, features_of, generate_parameters, read_support
from hypercompress.transfer.ridge import Ridge, evenly, fit_ridge
from hypercompress.transfer.support import Support
from hypercompress.transfer.views import Look, fitting, look_again, views_in_steps


@dataclass(frozen=True)
class Choice:
    """What the support set was answered with.

    Args:
        head: the ridge head in use.
        adapted: whether the generated parameters are in use.
        why: in words.
        other: the head of the adapted model, where there was one.
        passes: forward passes over the support set.
        features, labels: of the model as it is then, of all levels; the head in use is fitted on the last ones.
    """

    head: Ridge
    adapted: bool
    why: str
    other: Ridge | None
    passes: int
    features: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]


@dataclass(frozen=True)
class Start:
    """A model moved to the task, and how.

    Args:
        student: with its new head.
        backbone: the network inside it.
        reading, choice, look: what the head comes from.
        head: the one in use.
        answers: how alike the classifier before answers, see `alike`.
        in_steps: views of an image that a step may see, at most.
        sites: norms, biases and what else can be adapted.
        refused: why other parts of the model are not adapted, by name.
        no_levels: why the head cannot read levels, if so.
        tried: images that were run to find that out.
    """

    student: Student
    backbone: Backbone
    reading: Reading
    choice: Choice
    look: Look
    head: Ridge
    answers: float | None
    in_steps: int
    sites: tuple[Site, ...]
    refused: Mapping[str, str]
    no_levels: str
    tried: int

    @property
    def task(self) -> Nearness:
        """How near the task is."""
        return nearness_of(self.answers)


def start_from(
    model: nn.Module,
    architecture: Architecture | None,
    network: TransferNetwork | None,
    support: Support,
    views: int,
    seed: int,
    *,
    levels: bool = True,
) -> Start:
    """A copy of the model with the head, and the generated parameters and levels where they are better, in place.

    Args:
        architecture: how to rebuild the model; ``None``: a timm model is recognised.
        network: what generates; ``None``: nothing does.
        views: of each image, for the head.
        seed: of the views.
        levels: whether the head may read some.

    Raises:
        DataError, ModelError, NonFiniteError: see `hypercompress.transfer.adapt`.
    """
    student, backbone = new_student(model, support.classes, architecture)
    there, no_levels, tried = _levels(student, backbone, support, views) if levels else (None, "not asked for", 0)
    if there is not None:
        read_levels(backbone.model, there)
    roles = () if network is None else network.config.roles
    # Norms and biases are what steps may tune, whatever the network adapts.
    places = adaptable(backbone.model, backbone.classifier, tuple({Role.NORM, Role.BIAS, *roles}))
    sites = tuple(site for site in places.sites if site.role in roles)
    device = device_of(model)
    reading = read_support(backbone, support.on(device), sites, support.classes)
    answers = alike(backbone.last(reading.features), reading.labels, _classifier(model, backbone))
    task = nearness_of(answers)
    choice = choose_head(network, backbone, reading, support, task)
    plain = weigh(choice.features, choice.labels, support.classes, there, choice.head, task)
    look = look_again(backbone, plain, task, choice.features, support, views, seed)
    head = look.head if look.kept and look.head is not None else plain.head
    if plain.weighing is Weighing.LAST:
        read_last(backbone.model)
    elif student.architecture is not None:
        student.architecture = replace(student.architecture, levels=there)
    backbone.set_classifier(head.weight, head.bias)
    return Start(
        student,
        backbone,
        reading,
        choice,
        look,
        head,
        answers,
        views_in_steps(task, views),
        tuple(places.sites),
        {**places.refused, **reading.unread},
        no_levels,
        tried,
    )


def _classifier(model: nn.Module, backbone: Backbone) -> nn.Module | None:
    """What reads the last features in the model as it was; ``None`` where it reads levels, of which these are few."""
    before = network_of(model)
    return None if isinstance(before, ReadsLevels) else before.get_submodule(backbone.classifier)


def _levels(student: Student, backbone: Backbone, support: Support, views: int) -> tuple[Levels | None, str, int]:
    """The levels that a head may read, if there are none why not, and how many images were run."""
    images = support.images
    if student.architecture is None:
        return None, "a model that timm does not build by name could not be loaded with them", 0
    if images is None:
        return None, "how many images there are is not known", 0
    image = next(iter(support.on(device_of(student))))[0][:1]
    with evaluating(backbone), torch.no_grad():
        last = features_of(backbone, image)
    found, why = find_levels(backbone, image, last, images * (1 + fitting(views, images)), support.classes)
    return found, why, 1 + hasattr(backbone.model, "forward_intermediates")


def new_student(model: nn.Module, classes: int, architecture: Architecture | None) -> tuple[Student, Backbone]:
    """A copy of the model with an empty head of so many classes, and the same model as a backbone.

    Raises:
        ModelError: no backbone, or its classifier is not one linear layer with a bias.
    """
    inner: Any = Backbone(network_of(model)).model
    if isinstance(model, Student):
        student = copy_of(model)
    else:
        student = Student(copy_of(model), architecture or architecture_of(model))
    read_last(student.model)  # the task before this one may have wanted levels
    if student.architecture is not None:
        student.architecture = replace(student.architecture, levels=None)
    some = next(model.parameters())
    with drawing():  # the new head is drawn, and then overwritten
        student.reset_classifier(classes)
    backbone = Backbone(student.to(some.device).model)
    last = backbone.model.get_submodule(backbone.classifier)  # raises if it is no linear layer
    if last.bias is None:
        raise ModelError(
            f"received {type(backbone.model).__name__}, whose reset_classifier makes a linear layer without a bias; "
            "expected one with a bias, which the closed-form head has; make it with bias=True"
        )
    last.to(getattr(inner.get_classifier(), "weight", some).dtype)  # other parts may be in other precisions
    return student, backbone


def choose_head(
    network: TransferNetwork | None, backbone: Backbone, reading: Reading, support: Support, task: Nearness
) -> Choice:
    """The head on the adapted model if leaving one out finds it no worse, which is then written into the model. With
    one image a class it is that of the model as it was, on even features (`ridge.evenly`).

    On near tasks what is generated was never worth anything, and of few images leaving one out does not see what it
    costs (LOG.md, 2026-11-29).
    """
    plain, known = reading.head, (reading.features, reading.labels)
    if plain.loo_loss is None:
        last = backbone.last(reading.features)
        head = fit_ridge(last, reading.labels, support.classes, factors=evenly(last.double()))
        why = "one image a class: nothing can be left out to judge a change"
        return Choice(head, False, why, None, 1, *known)
    if network is None:
        return Choice(plain, False, "ridge regression alone: no network", None, 1, *known)
    if task is Nearness.NEAR:
        return Choice(plain, False, "ridge regression alone: MODEL tells the new classes apart", None, 1, *known)
    if not reading.sites:
        return Choice(plain, False, "ridge regression alone: nothing in the model can be adapted", None, 1, *known)
    with torch.no_grad():
        parameters = generate_parameters(network, backbone, reading)
        features, labels = _features(backbone, parameters, support)
    if not bool(features.isfinite().all()):
        return Choice(plain, False, "the adapted features are not finite", None, 2, *known)
    head = fit_ridge(backbone.last(features), labels, support.classes)
    better = head.loo_loss is not None and head.loo_loss <= plain.loo_loss
    if better:
        write(backbone.model, parameters)
    used = (features, labels) if better else known
    return Choice(head if better else plain, better, "leave-one-out loss", head, 2, *used)


def _features(
    backbone: Backbone, parameters: dict[str, Tensor], support: Support
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """The second pass, with its labels: a loader may mix the images anew."""
    rows = []
    with evaluating(backbone):
        for images, labels in support.on(device_of(backbone)):
            rows.append((backbone.adapted(parameters, images), labels))
    features, every = (torch.cat(column) for column in zip(*rows, strict=True))
    return features, every
