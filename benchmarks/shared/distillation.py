"""The distillation of every student that a benchmark compares; `benchmarks.pilot` chooses the recipe of each start."""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from benchmarks.shared.captured import Captured
from benchmarks.shared.common import Results, Set, answered, fidelity, say, size_of
from hypercompress.fidelity import Fidelity
from hypercompress.losses import distillation_kl
from lightning_modules.dropping import dropping_nothing
from lightning_modules.mixing import mixed
from lightning_modules.norms import batch_costs, freeze_norms


@dataclass(frozen=True)
class Recipe:
    """How a student is distilled from the teacher's logits alone; no labels.

    Args:
        optimizer: ``sgd`` is with Nesterov momentum 0.9.
        lr: the highest learning rate: a straight rise over the first tenth of the steps, then half a cosine to 0.
        temperature: of the softened predictions.
        weight_decay: on weights of more than one axis.
        steps: optimiser steps.
        batch: images in a batch.
        frozen_norms: BatchNorm keeps its moments, for batches too small to have their own.
    """

    optimizer: Literal["adamw", "sgd"]
    lr: float
    temperature: float = 1.0
    weight_decay: float = 0.0
    steps: int = 200
    batch: int = 128
    frozen_norms: bool = False

    def __str__(self) -> str:
        words = f"{self.optimizer} lr {self.lr:g} T {self.temperature:g} {self.steps} x {self.batch}"
        return f"{words}, frozen norms" if self.frozen_norms else words

    def make(self, student: nn.Module) -> torch.optim.Optimizer:
        """The optimiser over all parameters; on a card one whose steps can be captured."""
        parameters = [p for p in student.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        card = parameters[0].is_cuda
        rate = torch.tensor(self.lr, device=parameters[0].device) if card else self.lr
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True)
        return torch.optim.AdamW(groups, rate, capturable=card)

    def factor(self, step: int) -> float:
        """The learning rate at a step as a share of the highest."""
        rise = max(1, self.steps // 10)
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))


RECIPES = tuple(Recipe("adamw", lr) for lr in (1e-3, 3e-3, 1e-2))
PILOT = "distillation_pilot.csv"
PILOT_KEY = ("recipe", "start", "seed")


def best_recipe(pilot: Results, start: str, weights: str | None = None) -> Recipe:
    """The recipe with the best mean accuracy of this start on held-out training images (`benchmarks.pilot`).

    Args:
        weights: digest of all that the start depends on; rows of other teachers do not count. ``None``: all do.

    Raises:
        LookupError: the pilot has no row of it.
    """
    of = {"start": start} if weights is None else {"start": start, "weights": weights}
    means = {recipe: pilot.numbers("top1", recipe=str(recipe), **of) for recipe in RECIPES}
    known = {recipe: sum(numbers) / len(numbers) for recipe, numbers in means.items() if numbers}
    if not known:
        others = ", ".join(dict.fromkeys(row["weights"] for row in pilot.rows if row["start"] == start)) or "none"
        raise LookupError(
            f"received rows of {start} in {pilot.path} with these weights: {others}; expected some with "
            f"{weights or 'any'}; run benchmarks.pilot first, with this --teacher, --hypernet and --out"
        )
    return max(known, key=known.__getitem__)


def distil(student: nn.Module, train: Set, recipe: Recipe, seed: int) -> nn.Module:
    """A distilled copy of ``student``; epochs in a random order of the seed."""
    return distil_each(student, train, [recipe], seed)[0]


def distil_each(student: nn.Module, train: Set, recipes: Sequence[Recipe], seed: int) -> list[nn.Module]:
    """A distilled copy of ``student`` for each recipe, step by step side by side; on a card all at once."""
    ways = [_Way(student, train, recipe, seed) for recipe in recipes]
    for step in range(max(recipe.steps for recipe in recipes)):
        for way in ways:
            way.go(step)
    if train.images.is_cuda:
        torch.cuda.synchronize()
    return [way.student.eval() for way in ways]


class _Way:
    """One student on its way."""

    def __init__(self, student: nn.Module, train: Set, recipe: Recipe, seed: int) -> None:
        self.student, self.train, self.recipe = copy.deepcopy(student).train(), train, recipe
        if recipe.frozen_norms:
            freeze_norms(self.student)
        self.optimizer = recipe.make(self.student)
        self.places = orders(len(train), recipe, seed).to(train.images.device)
        self.captured: Captured | None = None
        if train.images.is_cuda:
            try:
                self.captured = Captured(self.student, self.optimizer, self._step, self.places[0])
            except RuntimeError as error:
                say(f"steps one instruction at a time, as no graph holds them: {str(error).splitlines()[0]}")

    def go(self, step: int) -> None:
        """Take a step, if there is one left."""
        if step >= self.recipe.steps:
            return
        if self.captured is not None:
            self.captured(self.places[step], lambda: self._set_rate(step))
            return
        self._set_rate(step)
        self.optimizer.zero_grad()
        self._step(self.places[step])

    def _step(self, chosen: Int64[Tensor, " b"]) -> None:
        with dropping_nothing(self.student):  # as without labels in lightning_modules/distillation.py
            logits = self.student(self.train.images[chosen])
            distillation_kl(logits, self.train.logits[chosen], self.recipe.temperature).backward()
        self.optimizer.step()

    def _set_rate(self, step: int) -> None:
        rate = self.recipe.lr * self.recipe.factor(step)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def orders(count: int, recipe: Recipe, seed: int) -> Int64[Tensor, "steps b"]:
    """Places of the images of each step: each image once before any comes again."""
    generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.int64)
    found = []
    for _ in range(recipe.steps):
        if len(order) < recipe.batch:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        found.append(order[: recipe.batch])
        order = order[recipe.batch :]
    return torch.stack(found)


def mixtures(teacher: nn.Module, pool: Set, recipe: Recipe, seed: int) -> Set:
    """Every batch that the steps of a recipe would take, with boxes of one image in another, as the teacher answers
    them: as many images as the steps see, each of which they see once.
    """
    random, places = torch.Generator().manual_seed(seed), orders(len(pool), recipe, seed).to(pool.images.device)
    made = pool.images.new_empty(*places.shape, *pool.images.shape[1:])  # of photographs one copy is a gigabyte
    for batch, chosen in zip(made, places, strict=True):
        batch.copy_(mixed(pool.images[chosen], random))
    return answered(teacher, made.flatten(0, 1))


def costs_of(start: nn.Module, batch: Set) -> float | None:
    """What a run would find in its first batch, to choose how norms normalise (`lightning_modules.norms`)."""
    return batch_costs(start, batch.images, lambda given: distillation_kl(given, batch.logits))


def from_random(student: nn.Module, seed: int) -> nn.Module:
    """The same network with the weights that torch gives new layers (Kaiming uniform)."""
    fresh = copy.deepcopy(student)
    torch.manual_seed(seed)
    for module in fresh.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return fresh


def distilled(teacher: nn.Module, start: nn.Module, train: Set, test: Set, recipe: Recipe, seed: int) -> dict[str, Any]:
    """One row: a network before and after."""
    params, macs = size_of(start, test.images[:2])
    before, clock = fidelity(teacher, start, test), time.perf_counter()
    trained = distil(start, train, recipe, seed)
    seconds, after = time.perf_counter() - clock, fidelity(teacher, trained, test)
    return {**changed((params, macs), before, after), "seconds": seconds}


def changed(size: tuple[int, int], before: Fidelity, after: Fidelity) -> dict[str, Any]:
    """The columns of a student before and after steps.

    Args:
        size: parameters and multiply-accumulates.
    """
    params, macs = size
    return {
        "params": params,
        "macs": macs,
        "top1_start": before.top1_student,
        "kl_start": before.kl,
        "top1": after.top1_student,
        "agreement": after.agreement,
        "kl": after.kl,
        "top1_teacher": after.top1_teacher,
    }
