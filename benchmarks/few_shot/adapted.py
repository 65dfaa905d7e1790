"""Ours in the transfer benchmark: `hypercompress.transfer.adapt`, with and without its network, views, levels, all."""

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.few_shot.backbones import BATCH, Backbone
from benchmarks.few_shot.clock import now
from benchmarks.few_shot.passes import counting
from benchmarks.few_shot.stacked import Stack, each_loss, judge, together
from benchmarks.few_shot.tuning import Outcome, accuracy, views_of
from benchmarks.shared.common import digest
from hypercompress.data import Episode
from hypercompress.student import Student
from hypercompress.transfer import adapt
from hypercompress.transfer.adaptable import Role, adaptable
from hypercompress.transfer.rates import CANDIDATES
from hypercompress.transfer.registry import RELEASED
from hypercompress.transfer.support import as_support
from hypercompress.transfer.tuning import Tuned, schedule, tuned_names
from hypercompress.transfer.views import step_viewer

DEFAULT = "adapt-default-views"  # as users have it: levels, rates tried on far tasks, half of the way on near ones
LEVELS = ("adapt-levels", DEFAULT)  # those whose head may read levels
ADAPTED = ("adapt", "adapt-plain", "adapt-all", "ridge-views", "adapt-views", "adapt-all-views", *LEVELS)
CLOSED = ("adapt", "ridge-views", "adapt-views", *LEVELS)  # those that are something of their own without steps
STEPPING = ("adapt", "adapt-plain", "adapt-all", "adapt-all-views", DEFAULT)
PLAIN = ("adapt-plain", "ridge-views")  # without the network


def network_folder(method: str, network: str) -> Path | None:
    """Where the transfer network of a method lies; ``None``: it has none.

    Args:
        network: ``auto`` for the released one, or a folder.
    """
    folder = RELEASED if network == "auto" else Path(network)
    return folder if method not in PLAIN and folder.is_dir() else None


def tuned_by(method: str) -> Tuned:
    """What the steps of a method tune."""
    return Tuned.ALL if method.startswith("adapt-all") or method == DEFAULT else Tuned.NORMS


def steps_of(method: str, network: str, steps: list[int]) -> list[int]:
    """The numbers of steps at which a method is something of its own: without network, views and steps it is ridge, and
    what the steps tune is nothing to it without steps.
    """
    if method not in PLAIN and network_folder(method, network) is None:
        return []
    return [count for count in steps if method in (STEPPING if count else CLOSED)]


def network_digest(method: str, network: str) -> str:
    """What the network adds to the digest of the backbone's weights; to that of a baseline nothing."""
    folder = network_folder(method, network) if method in ADAPTED else None
    return f"+{digest(folder)}" if folder else ""


def adapt_episode(
    backbone: Backbone,
    last: str,
    episode: Episode,
    method: str,
    steps: int,
    network: str,
    seed: int,
    rate: float | None = None,
) -> Outcome:
    """One episode by one of `ADAPTED`, steps followed all of the way but by `DEFAULT`; see `benchmarks.halfway`.

    Args:
        last: see `counting`.
        network: see `network_folder`.
        seed: of what `adapt` draws.
        rate: of its steps; ``None``: as `adapt` has it.
    """
    folder, start = network_folder(method, network), now(backbone.device)
    with counting(backbone.model, last) as passes:
        student = adapt(
            backbone.model,
            episode.support,
            episode.support_labels,
            steps=steps,
            views=None if method == DEFAULT else views_of(method),
            levels=method in LEVELS,
            network=folder or "none",
            tuned=tuned_by(method),
            rate=rate,
            follow=None if method == DEFAULT else 1.0,
            seed=seed,
        )
        seconds = now(backbone.device) - start
        with passes.paused(), torch.no_grad():
            logits = torch.cat([student(batch) for batch in episode.query.split(BATCH)])
    images = len(episode.support)
    right = accuracy(logits, episode.query_labels)
    return Outcome(right, passes.forward / images, passes.backward / images, seconds)


def adapt_together(
    backbone: Backbone,
    last: str,
    episodes: Sequence[Episode],
    method: str,
    steps: Sequence[int],
    network: str,
    seeds: Sequence[int],
    rate: float | None = None,
) -> list[dict[int, Outcome]]:
    """`adapt_episode` for episodes of one size and several numbers of steps.

    What needs no steps is `adapt` itself, episode by episode and once for all numbers of steps; the steps are those of
    `hypercompress.transfer.tuning.tune` on a stack, at ``rate`` or the least of those that `adapt` tries.
    """
    folder, views, model = network_folder(method, network), views_of(method), backbone.model
    with counting(backbone.model, last) as passes:
        students = [
            adapt(model, e.support, e.support_labels, views=views, levels=False, network=folder or "none", seed=seed)
            for e, seed in zip(episodes, seeds, strict=True)
        ]
    before = passes.forward // len(episodes)
    found: list[dict[int, Outcome]] = [{} for _ in episodes]
    for several, places in _by_views(students).items():  # those of a stack have batches of one size
        some, drawn = [episodes[place] for place in places], [seeds[place] for place in places]
        for count in steps:
            stack = student_stack([students[place] for place in places], tuned_by(method))
            stack.passes.forward = before
            change = together([step_viewer(several, seed) for seed in drawn])
            rated = CANDIDATES[tuned_by(method)][0] if rate is None else rate
            tune_stack(stack, _batches(some, drawn), count, rated, change)
            for place, outcome in zip(places, judge(stack, (), some), strict=True):
                found[place][count] = outcome
    return found


def _by_views(students: Sequence[Student]) -> dict[int, list[int]]:
    """Places of the students by how many views of an image their steps may see."""
    found: dict[int, list[int]] = {}
    for place, student in enumerate(students):
        found.setdefault(student.report["transfer"]["views"]["in_steps"], []).append(place)
    return found


def student_stack(students: Sequence[Student], what: Tuned = Tuned.NORMS) -> Stack:
    """The students as one stack: the parameters that `adapt` tunes, which ask for gradients, and those that differ.

    They share everything else, so buffers must be the same.
    """
    model = students[0].model.requires_grad_(True)  # a stack of them before this one froze it
    classifier = next(name for name, module in model.named_modules() if module is model.get_classifier())  # type: ignore[operator]
    tuned = set(tuned_names(adaptable(model, classifier, (Role.NORM, Role.BIAS)).sites, model, classifier, what))
    model.requires_grad_(False)  # after `tuned_names`, which leaves out what is frozen
    every = [dict(student.model.named_parameters()) for student in students]
    chosen = [n for n, p in every[0].items() if n in tuned or any(not torch.equal(p, other[n]) for other in every)]
    parameters = {n: torch.stack([p[n].detach() for p in every]).requires_grad_(n in tuned) for n in chosen}
    return Stack(model, parameters, kernels=any(p.ndim > 4 for p in parameters.values()))


def tune_stack(
    stack: Stack,
    batches: Sequence[tuple[Tensor, Tensor]],
    steps: int,
    rate: float,
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda images, labels: (images, labels),
) -> None:
    """Ordinary steps of every student of a stack.

    Args:
        batches: stacked images [e, b, c, h, w] and labels [e, b], one a step, again and again.
        change: of the images and labels of a step.
    """
    learned = [p for p in stack.parameters.values() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(steps))
    for images, labels in islice(cycle(batches), steps):
        seen, named = change(images, labels)
        loss = each_loss(stack(seen), named)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()


def _batches(episodes: Sequence[Episode], seeds: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """The batches of `adapt`, stacked."""
    sets = [
        as_support(e.support, e.support_labels, None, seed, None).batches
        for e, seed in zip(episodes, seeds, strict=True)
    ]
    stacked = [tuple(torch.stack(column) for column in zip(*step, strict=True)) for step in zip(*sets, strict=True)]
    return [(images, labels) for images, labels in stacked]
