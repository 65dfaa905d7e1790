"""The learning rate of the steps: on a far task that of a few at which views end best, on a near one the least.

What a network bears in fifty steps differs by an order of magnitude from network to network. Each step sees new views,
so the loss of the last ones says how well a rate went: one that the network does not bear ends high, one that gets
nowhere, too. On a near task that is no guide, because steps fit the few images there at the cost of what the features
had, the more the larger the rate is (LOG.md, 2026-11-28).
"""

import math
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from hypercompress.errors import NonFiniteError
from hypercompress.running.calling import Progress
from hypercompress.transfer.apply import write
from hypercompress.transfer.steps import is_far
from hypercompress.transfer.tuning import Change, Tuned, tune
from hypercompress.transfer.views import Look

# From grids on other data (benchmarks/results/transfer_rates.csv); every network that was tried bears the first.
RATES = {Tuned.NORMS: (3e-3,), Tuned.ALL: (3e-4, 1e-3, 2e-3)}
TRIED = 50  # steps at each, at most


def rates_of(what: Tuned, look: Look) -> tuple[float, ...]:
    """The rates to try: one where the task is near or nothing is known of it, as without views."""
    return RATES[what] if is_far(look) else RATES[what][:1]


def tune_at_best(
    model: nn.Module,
    names: Iterable[str],
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    steps: int,
    rates: Sequence[float],
    change: Callable[[], Change],
    progress: Progress | None = None,
) -> dict[float, float]:
    """`tune` at the rate after `TRIED` steps of which, or all if there are fewer, the loss is least; in place.

    Args:
        rates: at least one; of a single one nothing is tried.
        change: makes what changes a step's images anew, so that all rates see the same views.

    Returns:
        the loss of each rate that was tried, in nats; infinite where it became so.

    Raises:
        NonFiniteError: see `tune`; at every rate, or of the one that was chosen after more steps.
    """
    chosen, tried = list(names), min(steps, TRIED)
    if len(rates) == 1:
        tune(model, chosen, batches, steps, rates[0], change(), progress)
        return {}
    before = {name: model.get_parameter(name).detach().clone() for name in chosen}
    losses, after = dict[float, float](), before
    for rate in rates:
        write(model, before)
        try:
            losses[rate] = tune(model, chosen, batches, tried, rate, change(), progress)
        except NonFiniteError:
            if rate == rates[-1] and not any(map(math.isfinite, losses.values())):
                raise
            losses[rate] = math.inf
        else:
            if losses[rate] == min(losses.values()):
                after = {name: model.get_parameter(name).detach().clone() for name in chosen}
    if tried < steps:
        write(model, before)
        tune(model, chosen, batches, steps, min(losses, key=losses.__getitem__), change(), progress)
    else:
        write(model, after)
    return losses
