"""The facade: a trained model and a few labelled images of a new task in, a student for that task out."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hypercompress.architecture import Architecture, architecture_of
from hypercompress.calling import evaluating, keeping_random_state
from hypercompress.copying import as_written, copy_of
from hypercompress.errors import GeneratorError
from hypercompress.report import moved_report
from hypercompress.student import Student
from hypercompress.transfer.adaptable import Role, adaptable
from hypercompress.transfer.apply import write
from hypercompress.transfer.backbone import Backbone
from hypercompress.transfer.network import TransferNetwork
from hypercompress.transfer.reading import Reading, generate_parameters, read_support
from hypercompress.transfer.registry import load_network
from hypercompress.transfer.ridge import Ridge, fit_ridge
from hypercompress.transfer.support import Support, as_support
from hypercompress.transfer.tuning import Tuned, tune, tuned_names
from hypercompress.transfer.views import VIEWS, Look, look_again, step_viewer, views_in_steps

# Learning rates of the steps, from grids on other data (benchmarks/results/transfer_rates.csv). On everything a small
# network bears 1e-3 in fifty steps, EfficientNet-Lite0 does not (LOG.md, 2026-11-27).
RATES = {Tuned.NORMS: 3e-3, Tuned.ALL: 3e-4}


@dataclass(frozen=True)
class Choice:
    """What the support set was answered with.

    Args:
        head: the ridge head in use.
        adapted: whether the generated parameters are in use.
        why: in words.
        other: the head of the adapted model, where there was one.
        passes: forward passes over the support set.
        features: that the head in use is fitted on.
    """

    head: Ridge
    adapted: bool
    why: str
    other: Ridge | None
    passes: int
    features: Float[Tensor, "n d"]


@torch.inference_mode(False)
def adapt(  # noqa: PLR0913  (a facade: each argument has a default)
    model: nn.Module,
    support: Tensor | Iterable[Any],
    labels: Tensor | Sequence[int] | None = None,
    *,
    shots: int | None = None,
    steps: int = 0,
    views: int = VIEWS,
    network: str | Path | TransferNetwork = "auto",
    tuned: str = Tuned.ALL,
    rate: float | None = None,
    names: Sequence[str] | None = None,
    architecture: Architecture | None = None,
    seed: int = 0,
) -> Student:
    """Move a trained classifier to a new task. Without steps no gradient is taken, and without views the support set is
    run twice.

    The head is ridge regression on the model's features, its penalty and temperature by leave-one-out. The network
    generates new norms, biases and cores; they are kept only where leaving one out finds the head on them no worse than
    on the model as it was. With one image a class nothing can be left out, and the model stays as it was. Then the head
    is fitted on random views of the images too, if that is no worse by the same measure (see `look_again`).

    Args:
        model: a timm classifier or a `Student` of one; not modified.
        support: images [n, c, h, w] prepared for the model, or batches ``(images, labels)``.
        labels: of the images, from 0; every class at least once.
        shots: use so many images of each class, drawn by ``seed``; ``None``: all.
        steps: ordinary steps of AdamW afterwards.
        views: of each image, slightly turned, scaled and shifted, for the head; with any, each step sees new ones, one
            of each image or, where they move the features, so many that 64 images are together. 0: the images alone,
            for tasks in which place, size or direction is what tells the classes apart.
        tuned: what they tune: ``all`` parameters, or ``norms`` (scales and shifts of norms, biases and the head), which
            is less at 50 steps (LOG.md, 2026-11-26) and leaves the rest of the model as it was.
        network: ``auto`` (the released one; ridge regression alone if there is none), ``none``, a folder, or a network.
        rate: highest learning rate of the steps; ``None``: 3e-4 on all, 3e-3 on norms, as grids for trained networks
            have it; others may need less.
        names: of the classes by label, for the report.
        architecture: how to rebuild the model, if known; else a timm model is recognised.
        seed: of the shots drawn.

    Returns:
        the model with the new head; ``report["transfer"]`` says what was done, ``report["teacher"]`` is ``model``.

    Raises:
        DataError: see `as_support`; or images that the model does not take. ModelError: no backbone, see `Backbone`.
        GeneratorError, ArtefactError: see `load_network`. NonFiniteError: NaN in features, or in the loss of a step.

    Example:
        >>> student = adapt(model, images, labels, shots=5)  # doctest: +SKIP
    """
    start, model = time.perf_counter(), as_written(model)
    what = _tuned(tuned)
    rate = RATES[what] if rate is None else rate
    if min(steps, views) < 0 or not rate > 0:
        raise GeneratorError(
            f"received {steps} steps at a learning rate of {rate:g} and {views} views; expected 0 or more of either at "
            "a rate above 0; change them"
        )
    with keeping_random_state(model):
        generator = _generator(network, _device(model))
        found = as_support(support, labels, shots, seed, names)
        student, backbone = new_student(model, found.classes, architecture)
        roles = () if generator is None else generator.config.roles
        # Norms and biases are what the steps tune, whatever the network adapts.
        places = adaptable(backbone.model, backbone.classifier, tuple({Role.NORM, Role.BIAS, *roles}))
        sites = tuple(site for site in places.sites if site.role in roles)
        reading = read_support(backbone, found.on(_device(model)), sites if generator else (), found.classes)
        choice = choose_head(generator, backbone, reading, found)
        look = look_again(backbone, choice.head, choice.features, found, views, seed)
        head = final_head(choice, look)
        backbone.set_classifier(head.weight, head.bias)
        in_steps = views_in_steps(look, views)
        if steps:
            tune(
                backbone.model,
                tuned_names(places.sites, backbone.model, backbone.classifier, what),
                lambda: found.on(_device(model)),
                steps,
                rate,
                step_viewer(in_steps, seed),
            )
    about: dict[str, Any] = {
        "steps": steps,
        "rate": rate if steps else None,
        "tuned": str(what) if steps else None,
        "shots": shots,
        "seed": seed,
        "classes": names,
    }
    seconds = time.perf_counter() - start
    about |= {"network": _name(network, generator), "seconds": seconds}
    about |= {"refused": {**places.refused, **reading.unread}}
    told = {**transfer_report(choice, reading, look, in_steps), **about}
    student.report = moved_report(told, model, student, seconds)
    if getattr(model, "report", None):
        student.report["before"] = model.report
    return student


def new_student(model: nn.Module, classes: int, architecture: Architecture | None) -> tuple[Student, Backbone]:
    """A copy of the model with an empty head of so many classes, and the same model as a backbone.

    Raises:
        ModelError: no backbone, or its classifier is not one linear layer.
    """
    if isinstance(model, Student):
        Backbone(model.model)
        student = copy_of(model)
    else:
        Backbone(model)
        student = Student(copy_of(model), architecture or architecture_of(model))
    some = next(model.parameters())
    with torch.random.fork_rng(devices=[]):  # the new head is drawn, and then overwritten
        student.reset_classifier(classes)
    student.to(some.device, some.dtype)
    backbone = Backbone(student.model)
    assert backbone.classifier  # raises if it is no linear layer
    return student, backbone


def choose_head(network: TransferNetwork | None, backbone: Backbone, reading: Reading, support: Support) -> Choice:
    """The head on the adapted model if leaving one out finds it no worse, which is then written into the model."""
    plain = reading.head
    if network is None:
        return Choice(plain, False, "ridge regression alone: no network", None, 1, reading.features)
    if plain.loo_loss is None:
        return Choice(
            plain, False, "one image a class: nothing can be left out to judge a change", None, 1, reading.features
        )
    if not reading.sites:
        return Choice(
            plain, False, "ridge regression alone: nothing in the model can be adapted", None, 1, reading.features
        )
    with torch.no_grad():
        parameters = generate_parameters(network, backbone, reading)
        features, labels = _features(backbone, parameters, support)
    if not bool(features.isfinite().all()):
        return Choice(plain, False, "the adapted features are not finite", None, 2, reading.features)
    head = fit_ridge(features, labels, support.classes)
    better = head.loo_loss is not None and head.loo_loss <= plain.loo_loss
    if better:
        write(backbone.model, parameters)
    used = (head, features) if better else (plain, reading.features)
    return Choice(used[0], better, "leave-one-out loss", head, 2, used[1])


def final_head(choice: Choice, look: Look) -> Ridge:
    """The head in use."""
    return look.head if look.kept and look.head is not None else choice.head


def transfer_report(choice: Choice, reading: Reading, look: Look, in_steps: int) -> dict[str, Any]:
    """What was chosen and by which numbers; null where leaving one out was impossible."""

    def left_out(head: Ridge | None) -> dict[str, float | None]:
        return {"accuracy": head.loo_accuracy if head else None, "loss": head.loo_loss if head else None}

    head = final_head(choice, look)
    return {
        "ways": len(head.bias),
        "images": len(reading.labels),
        "kept": "adapted" if choice.adapted else "plain",
        "strength": float(choice.adapted),
        "why": choice.why,
        "penalty": head.penalty,
        "scale": head.scale,
        "views": {
            "count": look.count,
            "kept": look.kept,
            "why": look.why,
            "moved": look.moved,
            "in_steps": in_steps,  # at most
        },
        "loo": {
            "plain": left_out(reading.head),
            "adapted": left_out(choice.other),
            "views": left_out(look.head),
        },
        "passes": choice.passes + look.passed / len(reading.labels),
        "sites": len(reading.sites),
    }


def _features(
    backbone: Backbone, parameters: dict[str, Tensor], support: Support
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """The second pass, with its labels: a loader may mix the images anew."""
    rows = []
    with evaluating(backbone):
        for images, labels in support.on(_device(backbone)):
            rows.append((backbone.adapted(parameters, images), labels))
    features, every = (torch.cat(column) for column in zip(*rows, strict=True))
    return features, every


def _tuned(word: str) -> Tuned:
    if word not in list(Tuned):
        raise GeneratorError(f"received tuned={word!r}; expected one of {', '.join(Tuned)}; choose one")
    return Tuned(word)


def _generator(network: str | Path | TransferNetwork, device: torch.device) -> TransferNetwork | None:
    """The network where the model is; one that was passed stays where it is."""
    found = network if isinstance(network, TransferNetwork) else load_network(network)
    return found if found is None or _device(found) == device else copy_of(found).to(device)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _name(network: str | Path | TransferNetwork, loaded: TransferNetwork | None) -> str:
    if isinstance(network, TransferNetwork):
        return "given"
    return "none released" if loaded is None and str(network) == "auto" else str(network)
