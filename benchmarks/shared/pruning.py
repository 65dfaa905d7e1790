"""Torch-Pruning: Taylor importance, one ranking over all layers, many small steps.

Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", arXiv 2301.12900; importance by Molchanov et al. 2019,
arXiv 1906.10771. The gradients come from the calibration images with the teacher's own answers as labels, so that the
method sees what the generators see.
"""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
import torch_pruning
from torch import nn

from benchmarks.shared.common import Set
from hypercompress.running.calling import evaluating

STEPS = 100  # each removes one in a hundred channels of the original network


def parameters(model: nn.Module) -> int:
    """What sizes count unless told otherwise."""
    return sum(p.numel() for p in model.parameters())


def prune(
    teacher: nn.Module,
    calibration: Set,
    sizes: Sequence[int],
    steps: int = STEPS,
    count: Callable[[nn.Module], int] = parameters,
    kept: Sequence[str] = ("fc",),
) -> dict[int, nn.Module]:
    """Pruned copies of a network. It is pruned on the CPU: where Torch-Pruning gets an index wrong, as on RegNets, that
    is an error there, and on a card the end of all that the process does on it.

    Args:
        sizes: of each the smallest network on the way that has no fewer is kept.
        steps: how often gradients are measured anew.
        count: what sizes are, of a network on the CPU; parameters by default.
        kept: layers whose outputs stay: the classifier.

    Returns:
        the networks by the size asked for, where the teacher is.
    """
    home, cpu = next(teacher.parameters()).device, torch.device("cpu")
    model, calibration = copy.deepcopy(teacher).to(cpu), calibration.to(cpu)
    pruner = torch_pruning.pruner.BasePruner(
        model,
        calibration.images[:2],
        importance=torch_pruning.importance.GroupTaylorImportance(),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=steps,
        ignored_layers=[model.get_submodule(name) for name in kept],
    )
    found: dict[int, nn.Module] = {}
    for _ in range(steps):
        before = copy.deepcopy(model)
        before.zero_grad()
        gradients(model, calibration)
        pruner.step()
        now = count(model)
        found.update({size: before for size in sizes if size not in found and now < size})
        if len(found) == len(sizes):
            break
    return {size: network.to(home) for size, network in found.items()}


def gradients(model: nn.Module, calibration: Set) -> None:
    """The mean gradient of the cross-entropy against the teacher's answers, at the network's own norms."""
    model.zero_grad()
    with evaluating(model):
        for images, _, logits in calibration.batches(128):
            loss = F.cross_entropy(model(images), logits.argmax(-1), reduction="sum") / len(calibration)
            loss.backward()
