"""Trials: what students cost whose allocation is bent by noise, and the search gradient that they hold.

The refit and the integer ranks have no gradient worth following (LOG.md, 2026-11-25): the first-order one made two of
four cases worse. So the outputs that steer the allocation are perturbed by noise and by its mirror image, and both
students are made, refitted or distilled, and judged (antithetic evolution strategies: Wierstra et al. 2014, "Natural
evolution strategies", sec. 3; Salimans et al. 2017, sec. 2.1; in the space of outputs it is node perturbation, Williams
1992). Half the difference is the slope along the noise; half the sum, less what the middle costs, the curvature. A
network is then trained to foretell slopes (`trial_loss`), which uses each trial many times: making them is what takes
the time.

Letters: ``n`` candidate layers, ``p`` pairs, ``k = len(PERTURBED)``.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hypercompress.errors import DataError
from hypercompress.generator.heads import Outputs
from hypercompress.generator.hypernetwork import Hypernetwork, tokens_of
from hypercompress.meta.case import Case
from hypercompress.meta.judge import Costs, Sample, judge
from hypercompress.meta.loss import Objective
from hypercompress.specs import Afterwards, Budget
from hypercompress.tokens import BANDS, Tokens

PERTURBED = {"weight": 1.0, "inner": 0.6, "exponent": 0.25}  # outputs, and the deviation of their noise
SCALES = (0.4, 0.8)  # of the noise, in turn


@dataclass(frozen=True)
class Trials:
    """Pairs of one teacher at one budget.

    Args:
        teacher: its name.
        budget, after: what was asked for.
        tokens: what a hypernetwork reads.
        centre: the outputs that were perturbed; zero is the analytic start.
        noise: what was added to one student of a pair, and taken from the other.
        base: costs of the student in the middle.
        plus, minus: of the two of each pair.
    """

    teacher: str
    budget: Budget
    after: Afterwards
    tokens: Tokens
    centre: Float[Tensor, "k n"]
    noise: Float[Tensor, "p k n"]
    base: Costs
    plus: tuple[Costs, ...]
    minus: tuple[Costs, ...]


def make_trials(
    case: Case,
    budget: Budget,
    after: Afterwards,
    sample: Sample,
    pairs: int,
    generator: torch.Generator,
    centre: Float[Tensor, "k n"] | None = None,
) -> Trials:
    """Make and judge ``2 pairs + 1`` students.

    Args:
        sample: images, on the case's device.
        generator: of the noise, on the CPU.
        centre: outputs in the middle; ``None``: the analytic start.
    """
    tokens = tokens_of(case.spec, case.sketches[True], case.starts[True], budget, after)
    middle = torch.zeros(len(PERTURBED), len(case.spec.candidates)) if centre is None else centre
    deviation = torch.tensor(list(PERTURBED.values()))[:, None]
    scales = [SCALES[pair % len(SCALES)] for pair in range(pairs)]
    noise = [scale * deviation * torch.randn(middle.shape, generator=generator) for scale in scales]

    def cost(values: Tensor) -> Costs:
        return judge(case, steering(values), budget, after, sample)

    base = cost(middle)
    plus, minus = (tuple(cost(middle + sign * part) for part in noise) for sign in (1, -1))
    return Trials(case.name, budget, after, tokens, middle, torch.stack(noise), base, plus, minus)


def steering(values: Float[Tensor, "k n"]) -> Outputs:
    """Outputs that are zero but for the `PERTURBED` ones."""
    n = values.shape[1]
    zero = {f.name: torch.zeros(n) for f in fields(Outputs)}
    zero |= {"gain": torch.zeros(n, BANDS), "states": torch.zeros(n, 1)}
    return Outputs(**{**zero, **dict(zip(PERTURBED, values, strict=True))})


def steered(outputs: Outputs) -> Float[Tensor, "k n"]:
    """The `PERTURBED` ones of a hypernetwork's outputs."""
    return torch.stack([getattr(outputs, name) for name in PERTURBED])


def slopes(trials: Trials, objective: Objective) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"]]:
    """Half the difference of each pair's scores, and half their sum less the score of the middle."""
    base = trials.base.score(objective)
    plus, minus = (torch.tensor([c.score(objective) for c in side]) for side in (trials.plus, trials.minus))
    return (plus - minus) / 2, (plus + minus) / 2 - base


def curvature(many: Sequence[Trials], objective: Objective) -> Float[Tensor, " k"]:
    """Second derivative of the score by each kind of output, the same for all layers: least squares over all pairs.

    Where it comes out below a tenth of the largest, in units of the noise's deviation, it is raised to that.
    """
    size = torch.cat([(t.noise**2).sum(-1) / 2 for t in many]).double()
    risen = torch.cat([slopes(t, objective)[1].clamp(-1, 1) for t in many]).double()
    unit = torch.tensor(list(PERTURBED.values()), dtype=torch.float64)
    found = torch.linalg.lstsq(size / unit**2, risen[:, None]).solution[:, 0]
    raised: Tensor = found.clamp_min(max(float(found.max()) / 10, 1e-4)) / unit**2
    return raised.float()


def trial_loss(
    network: Hypernetwork, trials: Trials, bend: Float[Tensor, " k"], objective: Objective
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Squared error of the slopes that the network's outputs foretell, and that of foretelling none.

    If outputs ``a`` are a Newton step from the middle with curvature ``bend``, the slope along noise ``e`` is
    ``-sum_k bend_k <a_k - middle_k, e_k>``. So outputs that fit the slopes are that step; where nothing is known of a
    slope, the least error is the step of length zero.
    """
    outputs = steered(network(trials.tokens, True))
    step = outputs - trials.centre.to(outputs)
    foretold = -torch.einsum("k,kn,pkn->p", bend.to(outputs), step, trials.noise.to(outputs))
    slope = slopes(trials, objective)[0].clamp(-1, 1).to(outputs)
    return ((foretold - slope) ** 2).mean(), (slope**2).mean()


def gain_of(step: Float[Tensor, "k n"], bend: Float[Tensor, " k"]) -> float:
    """Fall of the score that a Newton step promises."""
    return math.fsum((0.5 * bend[:, None] * step**2).flatten().tolist())


def write_trials(many: Sequence[Trials], file: Path) -> None:
    """Trials of one teacher as tensors and JSON, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    head = []
    for number, trials in enumerate(many):
        costs = [trials.base, *trials.plus, *trials.minus]
        rows = [[c.kl, c.params, c.macs, math.nan if c.latency is None else c.latency] for c in costs]
        parts = {f"tokens.{f.name}": getattr(trials.tokens, f.name) for f in fields(Tokens)}
        parts |= {"centre": trials.centre, "noise": trials.noise, "costs": torch.tensor(rows, dtype=torch.float64)}
        tensors |= {f"{number}.{name}": part.contiguous().cpu() for name, part in parts.items()}
        budget = {str(trials.budget.unit): trials.budget.share}
        head.append({"teacher": trials.teacher, "budget": budget, "after": asdict(trials.after)})
    staging = file.with_suffix(".new")
    save_file(tensors, staging, {"trials": json.dumps(head)})
    staging.replace(file)


def read_trials(file: Path) -> list[Trials]:
    """What `write_trials` wrote.

    Raises:
        DataError: no such file, or another content.
    """
    try:
        with safe_open(file, "pt") as opened:
            heads = json.loads(opened.metadata()["trials"])
            return [_trials(head, f"{number}.", opened) for number, head in enumerate(heads)]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"received {file} ({error}); expected a file of python -m lightning_modules.trials; make it again"
        ) from error


def _trials(head: dict[str, Any], prefix: str, opened: Any) -> Trials:
    tokens = Tokens(**{f.name: opened.get_tensor(f"{prefix}tokens.{f.name}") for f in fields(Tokens)})
    rows = opened.get_tensor(f"{prefix}costs").tolist()
    costs = [Costs(kl, params, macs, None if math.isnan(time) else time) for kl, params, macs, time in rows]
    noise, pairs = opened.get_tensor(f"{prefix}noise"), len(costs) // 2
    return Trials(
        head["teacher"],
        Budget(**head["budget"]),
        Afterwards(**head["after"]),
        tokens,
        opened.get_tensor(f"{prefix}centre"),
        noise,
        costs[0],
        tuple(costs[1 : pairs + 1]),
        tuple(costs[pairs + 1 :]),
    )
