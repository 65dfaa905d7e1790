"""Ordinary steps made safe: at which learning rate, and how far they are followed.

The rate: on a far task that of a few at which views end best, else a small one.

What a network bears in fifty steps differs by an order of magnitude from network to network. Each step sees new views,
so the loss of the last ones says how well a rate went: one that the network does not bear ends high, one that gets
nowhere, too. On a near task that is no guide, because steps fit the few images there at the cost of what the features
had, the more the larger the rate is (LOG.md, 2026-11-28).

How far to go along ordinary steps: all of the way on a far task, half of it on a near one.

On a task that the backbone's features fit already, steps on a few images lose what the closed form has; the weights
half way between those before the steps and those after them do not (Wortsman et al. 2022, WiSE-FT, section 3; Kumar et
al. 2022 on what the steps do to the features). On a far task the end is better. Which it is, `nearness` tells (LOG.md,
2026-11-28 and 2026-11-29).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from hypercompress.errors import NonFiniteError
from hypercompress.running.calling import Progress
from hypercompress.transfer.apply import copies, write
from hypercompress.transfer.nearness import Nearness
from hypercompress.transfer.tuning import LAST, Change, Tuned, tune

CANDIDATES = {Tuned.NORMS: (3e-3,), Tuned.ALL: (3e-4, 1e-3, 2e-3)}  # every network that was tried bears the first
TRIAL_STEPS = 50  # of each, at most
FEWEST = 2 * LAST  # steps that are worth a choice: of fewer the last ones are nearly all of them
HALF = 0.5
MANY = 32  # images of a class: with so many the end still loses on a near task, with 100 it no longer does


def rates_of(what: Tuned, task: Nearness, steps: int, views: int) -> tuple[float, ...]:
    """The rates to try: of tasks that are not known to be far one, as it is without views, which alone tell how well a
    rate went, and for fewer steps than `FEWEST`.
    """
    several = task is Nearness.FAR and views > 0 and steps >= FEWEST
    return CANDIDATES[what] if several else CANDIDATES[what][:1]


def tune_at_best(
    model: nn.Module,
    names: Iterable[str],
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    steps: int,
    rates: Sequence[float],
    change: Callable[[], Change],
    progress: Progress | None = None,
) -> tuple[float, dict[float, float]]:
    """`tune` at each rate for up to `TRIAL_STEPS`; the run whose last views cost least is kept. With more steps all of
    them are taken anew at that rate, and at the next best if it diverges later. In place.

    Args:
        rates: at least one; of a single one nothing is tried.
        change: makes what changes a step's images anew, so that each rate sees the same views of images in memory (a
            loader may mix them).

    Returns:
        the rate of the steps that were kept, and the loss of each that was tried, in nats; infinite where it became so.

    Raises:
        NonFiniteError: the loss became so at every rate. The model is then left on the way.
    """
    chosen, trial = list(names), min(steps, TRIAL_STEPS)
    if len(rates) == 1:
        tune(model, chosen, batches, steps, rates[0], change(), progress)
        return rates[0], {}
    before = after = copies(model, chosen)
    losses, least = dict[float, float](), math.inf

    def run(rate: float, count: int) -> float:
        """From where all began; the loss in the end, infinite if it became so."""
        write(model, before)
        try:
            return tune(model, chosen, batches, count, rate, change(), progress)
        except NonFiniteError:
            return math.inf

    for rate in rates:
        losses[rate] = run(rate, trial)
        if trial == steps and losses[rate] < least:
            least, after = losses[rate], copies(model, chosen)
    order = sorted((rate for rate in rates if math.isfinite(losses[rate])), key=losses.__getitem__)
    if order and trial == steps:
        write(model, after)
        return order[0], losses
    for rate in order:
        if math.isfinite(run(rate, steps)):
            return rate, losses
    tried = ", ".join(f"{rate:g}" for rate in rates)
    raise NonFiniteError(
        f"received a loss that became NaN or infinite while tuning, at each learning rate of {tried}; expected a "
        "finite one; pass a lower rate, or take fewer steps"
    )


def share_of(task: Nearness, images: int, classes: int) -> float:
    """How far the steps are followed: half of the way on a near task, unless there are many images, else all of it.

    Args:
        images, classes: of the support set.
    """
    return HALF if task is Nearness.NEAR and images <= MANY * classes else 1.0


@torch.no_grad()
def go_back(model: nn.Module, before: Mapping[str, Tensor], share: float) -> None:
    """Put the parameters of ``before`` at a share of the way from there to where the model has them, in place."""
    for name, value in before.items():
        parameter = model.get_parameter(name)
        parameter.copy_(torch.lerp(value, parameter, share))
