"""The distillation of every student that a benchmark compares; `benchmarks.pilot` chooses the recipe of each start."""

import copy
import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.common import Results, Set, fidelity, size_of
from hypercompress.losses import distillation_kl


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
        """The optimiser over all parameters."""
        parameters = [p for p in student.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, self.lr, momentum=0.9, nesterov=True)
        return torch.optim.AdamW(groups, self.lr)

    def factor(self, step: int) -> float:
        """The learning rate at a step as a share of the highest."""
        rise = max(1, self.steps // 10)
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))


RECIPES = tuple(Recipe("adamw", lr) for lr in (1e-3, 3e-3, 1e-2))
PILOT = "distillation_pilot.csv"
PILOT_KEY = ("recipe", "start", "seed")


def best_recipe(pilot: Results, start: str) -> Recipe:
    """The recipe with the best mean accuracy of this start on held-out training images (`benchmarks.pilot`).

    Raises:
        LookupError: the pilot has no row of it.
    """
    means = {recipe: pilot.numbers("top1", recipe=str(recipe), start=start) for recipe in RECIPES}
    known = {recipe: sum(numbers) / len(numbers) for recipe, numbers in means.items() if numbers}
    if not known:
        raise LookupError(f"received no rows of {start} in {pilot.path}; expected some; run benchmarks.pilot first")
    return max(known, key=known.__getitem__)


def distil(student: nn.Module, train: Set, recipe: Recipe, seed: int) -> nn.Module:
    """A distilled copy of ``student``; epochs in a random order of the seed."""
    student = copy.deepcopy(student).train()
    for module in student.modules():
        if recipe.frozen_norms and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    optimizer = recipe.make(student)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.factor)
    generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.int64)
    for _ in range(recipe.steps):
        if len(order) < recipe.batch:
            order = torch.cat([order, torch.randperm(len(train), generator=generator)])
        chosen, order = order[: recipe.batch], order[recipe.batch :]
        loss = distillation_kl(student(train.images[chosen]), train.logits[chosen], recipe.temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return student.eval()


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
    return {
        "params": params,
        "macs": macs,
        "top1_start": before.top1_student,
        "kl_start": before.kl,
        "top1": after.top1_student,
        "agreement": after.agreement,
        "kl": after.kl,
        "top1_teacher": after.top1_teacher,
        "seconds": seconds,
    }
