"""The facade: a trained model and a few labelled images of a new task in, a student for that task out."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.alone import alone
from hypercompress.architecture import Architecture
from hypercompress.errors import warn
from hypercompress.report import moved_report
from hypercompress.running.calling import Progress, device_of, keeping_random_state, precision
from hypercompress.running.copying import as_written, copy_of
from hypercompress.running.wholes import seed_of, whole
from hypercompress.student import Student
from hypercompress.transfer.apply import copies
from hypercompress.transfer.closed_form import Start, start_from
from hypercompress.transfer.given import names_of, require_rate, tuned_of, warn_if_copied
from hypercompress.transfer.levels import Weighing
from hypercompress.transfer.network import TransferNetwork
from hypercompress.transfer.rates import go_back, rates_of, share_of, tune_at_best
from hypercompress.transfer.registry import load_network
from hypercompress.transfer.ridge import Ridge
from hypercompress.transfer.support import as_support, warn_if_sorted
from hypercompress.transfer.tuning import Tuned, head_names, names_for, tuned_names
from hypercompress.transfer.views import step_viewer, views_of


@alone
def adapt(  # noqa: PLR0913  (a facade: each argument has a default)
    model: nn.Module,
    support: Any,
    labels: Tensor | Sequence[int] | None = None,
    *,
    shots: int | None = None,
    steps: int = 0,
    views: int | None = None,
    levels: bool = True,
    network: str | Path | TransferNetwork = "auto",
    tuned: str = Tuned.ALL,
    rate: float | None = None,
    follow: int | float | None = None,
    names: Iterable[object] | Mapping[str, int] | None = None,
    architecture: Architecture | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Student:
    """Move a trained classifier to a new task. Without steps no gradient is taken, and without views the support set is
    run twice (and one image twice more, for levels).

    The head is ridge regression on the model's features, its penalty and temperature by leave-one-out. The network
    generates new norms, biases and cores on tasks that are not near (see `nearness`); they are kept only where leaving
    one out finds the head on them no worse than on the model as it was. The head reads maps where that is better by the
    same measure (see `levels.weigh`), and is fitted on random views of the images too if that is no worse (see
    `look_again`). With one image a class nothing can be left out: nothing is generated, maps are read on far tasks, and
    the head is fitted on views with maps or where they move the features, else on features that weigh more evenly
    (`ridge.evenly`).

    One thread of a process compresses or adapts at a time, others wait; meanwhile no other thread may run the model.

    Args:
        model: a timm classifier or a `Student` of one; not modified.
        support: images [n, c, h, w] prepared for the model, batches ``(images, labels)``, one such pair, or a set of
            labelled images; real numbers are cast to the model's precision. They are kept in memory, and mixed; only a
            loader that shuffles, with ``names`` and without ``shots``, is run anew for each pass. An image that is
            there twice with the same label counts once.
        labels: of the images, from 0; every class at least once. ``None`` where they come with the images.
        shots: use so many images of each class, drawn by ``seed``; ``None``: all.
        steps: ordinary steps of AdamW afterwards, in single precision where the model is in half.
        views: of each image, slightly turned, scaled and shifted, for the head; ``None``: 8, or up to 32 where images
            are few (`views.views_of`). With any, each step sees new ones, one of each image or, on tasks that are not
            near, up to 8 that make 64 images together. 0: the images alone,
            for tasks in which place, size or direction is what tells the classes apart.
        levels: whether the head may read the maps of all stages beside the last features (see `Levels`), which it does
            where leaving one out finds that better or, with one image a class, the model answers these alike.
        tuned: what they tune: ``all`` parameters, or ``norms`` (scales and shifts of norms, biases and the head), which
            is less at 50 steps (LOG.md, 2026-11-26) and leaves the rest of the model as it was. Frozen parameters
            (``requires_grad`` is false) stay as they are, all but the head, which is a new one: of a model that is
            frozen whole steps tune the head alone, and so they do of a student of such a model. Call
            ``model.requires_grad_(True)`` before to tune all of it.
        network: ``auto`` (the released one; nothing is generated if there is none), ``none``, a folder, or a network.
        rate: highest learning rate of the steps; ``None``: on norms 3e-3, on all 3e-4, but of ten or more on views
            of a far task the one of 3e-4, 1e-3 and 2e-3 at which views end best after up to fifty steps of each (see
            `rates.tune_at_best`).
        follow: how far the steps are followed, in (0, 1]: the weights at that share of the way from those before them;
            ``None``: half of the way on tasks near to what the model was trained on (see `nearness`), unless there are
            many images, else all of it.
        names: of the classes by label, for the report, or a table from name to label (``class_to_idx``).
        architecture: how to rebuild the model, if known; else a timm model is recognised.
        seed: of the shots drawn.
        progress: called with ``steps``, the number of them that are done, from 1 for each rate, and the rate in words.

    Returns:
        the model with the new head, in evaluation mode, for which the head is fitted; ``report["transfer"]`` says what
        was done, ``report["teacher"]`` is ``model``.

    Raises:
        DataError: see `as_support`; or images that the model does not take. ModelError: no backbone, see `Backbone`.
        GeneratorError, ArtefactError: see `load_network`. NonFiniteError: NaN in features, or in the loss of a step.

    Example:
        >>> student = adapt(model, images, labels, shots=5)  # doctest: +SKIP
    """
    start, model = time.perf_counter(), as_written(model)
    what, called = tuned_of(tuned), names_of(names)
    require_rate(rate, follow)
    steps, seed = whole("steps", steps), seed_of(seed)
    views, shots = (
        value if value is None else whole(name, value) for name, value in (("views", views), ("shots", shots))
    )
    with keeping_random_state(model):
        generator = _generator(network, device_of(model))
        own = precision(model)
        half = steps > 0 and own.itemsize < torch.float32.itemsize
        moved = copy_of(model).float() if half else model
        found = replace(as_support(support, labels, shots, seed, called), dtype=torch.float32 if half else own)
        count = views_of(found.images) if views is None else views
        fitted = start_from(moved, architecture, generator, found, count, seed, levels=levels)
        inner, images = fitted.backbone.model, len(fitted.reading.labels)
        warn_if_copied(found.copied)
        share = share_of(fitted.task, images, found.classes) if follow is None else float(follow)
        rates = rates_of(what, fitted.task, steps, count) if rate is None else (float(rate),)
        taken, losses, frozen, head_alone = rates[0], dict[float, float](), 0, False
        if steps:
            warn_if_sorted(found, fitted.reading.labels)
            of_model = fitted.sites, inner, fitted.backbone.classifier, what
            names_tuned = tuned_names(*of_model)
            frozen = len(names_for(*of_model)) - len(names_tuned)
            head_alone = frozen > 0 and head_names(fitted.backbone.classifier).issuperset(names_tuned)
            if head_alone:
                warn(
                    f"received a model of which {frozen} tensors that steps would tune are frozen; expected some that "
                    "are not; they stay as they are, and the head alone is tuned: call model.requires_grad_(True) "
                    "before to tune all of it",
                )
            before = copies(inner, names_tuned) if share < 1 else {}
            taken, losses = tune_at_best(
                inner,
                names_tuned,
                lambda: found.on(device_of(model)),
                steps,
                rates,
                lambda: step_viewer(fitted.in_steps, seed),
                progress,
            )
            go_back(inner, before, share)
    student, seconds = (fitted.student.to(own) if half else fitted.student).eval(), time.perf_counter() - start
    told = transfer_report(fitted) | {
        "steps": steps,
        "rate": taken if steps else None,
        "rates": [{"rate": tried, "loss": loss if math.isfinite(loss) else None} for tried, loss in losses.items()],
        "tuned": ("head" if head_alone else str(what)) if steps else None,
        "frozen": frozen if steps else None,  # tensors that the caller froze, and steps would have tuned
        "followed": share if steps else None,
        "shots": shots,
        "seed": seed,
        "classes": called,
        "network": _name(network, generator),
        "seconds": seconds,
    }
    student.report = moved_report(told, model, student, seconds)
    if getattr(model, "report", None):
        student.report["before"] = model.report
    return student


def transfer_report(start: Start) -> dict[str, Any]:
    """What was chosen and by which numbers; null where leaving one out was impossible."""
    reading, choice, weighed, look = start.reading, start.choice, start.look.plain, start.look

    even = reading.head.loo_loss is None and start.head is choice.head  # on the last features, without views

    def left_out(head: Ridge | None) -> dict[str, float | None]:
        return {"accuracy": head.loo_accuracy if head else None, "loss": head.loo_loss if head else None}

    return {
        "ways": len(start.head.bias),
        "images": len(reading.labels),
        "task": str(start.task),
        "kept": "adapted" if choice.adapted else "plain",
        "strength": float(choice.adapted),
        "why": choice.why + ("; features weigh more evenly" if even else ""),
        "penalty": start.head.penalty,
        "scale": start.head.scale,
        "views": {
            "count": look.count,
            "kept": look.kept,
            "why": look.why,
            "moved": look.moved,
            "in_steps": start.in_steps,  # at most
        },
        "levels": {
            "kept": weighed.weighing is not Weighing.LAST,
            "weighing": str(weighed.weighing),
            "why": start.no_levels or weighed.why,
            "width": len(start.head.weight[0]),
            "alike": start.answers,
            "loo_loss": {str(weighing): loss for weighing, loss in weighed.losses.items()},
        },
        "loo": {
            "plain": left_out(reading.head),
            "adapted": left_out(choice.other),
            "levels": left_out(weighed.head if weighed.weighing is not Weighing.LAST else None),
            "views": left_out(look.head),
        },
        "passes": choice.passes + (look.passed + start.tried) / len(reading.labels),
        "sites": len(reading.sites),
        "refused": dict(start.refused),
    }


def _generator(network: str | Path | TransferNetwork, device: torch.device) -> TransferNetwork | None:
    """The network where the model is; one that was passed stays where it is."""
    found = network if isinstance(network, TransferNetwork) else load_network(network)
    return found if found is None or device_of(found) == device else copy_of(found).to(device)


def _name(network: str | Path | TransferNetwork, loaded: TransferNetwork | None) -> str:
    if isinstance(network, TransferNetwork):
        return "given"
    return "none released" if loaded is None and str(network) == "auto" else str(network)
