"""Every start of the held-out protocol: a network of a method at a budget, before any step of distillation."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from benchmarks.protocol.budgets import Cell
from benchmarks.protocol.methods import (
    IMAGINED,
    NONE,
    OUTPUTS,
    RENORMALIZED,
    Case,
    Hypernetworks,
    judged,
    refittable,
    started_refitted,
)
from benchmarks.protocol.noise import Kind, images_of
from benchmarks.protocol.subject import STATISTICS_BATCH, Subject
from benchmarks.shared.common import fidelity, size_of
from benchmarks.shared.distillation import from_random
from benchmarks.shared.pruning import parameters, prune
from hypercompress.architecture import Architecture, build
from hypercompress.cli.inputs import LEAST_BATCHES
from hypercompress.compress import finish, searched
from hypercompress.errors import HypercompressError
from hypercompress.fidelity import Fidelity
from hypercompress.generator import ANALYTIC
from hypercompress.preparation import Plan, prepare
from hypercompress.running.norms import reestimate_norms
from hypercompress.specs import Refit, Unit

PRUNING_STEPS = 100
# What Torch-Pruning raises where it does not understand a network; it has no error of its own.
PRUNING_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError)


@dataclass(frozen=True)
class Start:
    """A network to measure and to distil, and what its maker tells of it; no network: ``note`` says why.

    Args:
        facts: columns of the table.
    """

    network: nn.Module | None
    note: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Starts:
    """All starts of one teacher and one seed; what several of them need is made once.

    Args:
        cells: every budget, because Torch-Pruning meets those of a unit on one way.
    """

    def __init__(self, subject: Subject, hypernetworks: Hypernetworks, seed: int, cells: list[Cell]) -> None:
        self.subject, self.hypernetworks, self.seed = subject, hypernetworks, seed
        self.cells = [cell for cell in cells if cell.share is not None]
        self._cell: Cell | None = None
        self._known: dict[tuple[Any, ...], Start] = {}  # of that budget, lest memory fills with networks
        self._tested: dict[int, Fidelity] = {}  # by identity: `_known` keeps the networks alive
        self.distilled: dict[tuple[int, bool, str], tuple[Fidelity, float]] = {}  # of that budget, by `rows` alone
        self._pruned: dict[Unit, dict[int, nn.Module] | str] = {}
        self._imagined: dict[tuple[Kind, bool], Plan] = {}

    @cached_property
    def measured(self) -> Plan:
        """Statistics of the seed's calibration images."""
        return self.subject.plan(self.seed)

    @cached_property
    def weights_alone(self) -> Plan:
        """Without any statistics."""
        return prepare(self.subject.teacher, None, "svd", example=self.subject.test.images[:2])

    def imagined(self, kind: Kind, renormalize: bool) -> Plan:
        """Statistics of images that are none."""
        if (kind, renormalize) not in self._imagined:
            first = self.subject.test.images
            c, h, w = first.shape[1:]
            images = images_of(kind, self.subject.teacher, self.subject.calibration, (c, h, w), self.seed).to(first)
            size = min(STATISTICS_BATCH, max(2, len(images) // LEAST_BATCHES))
            self._imagined[kind, renormalize] = prepare(
                self.subject.teacher, images.split(size), "kfac", renormalize=renormalize, seed=self.seed
            )
        return self._imagined[kind, renormalize]

    def make(self, case: Case, cell: Cell) -> Start:
        """The network that is measured at 0 steps, or distilled; the latter without a refit, but `ONLY_DISTILLED`."""
        if cell != self._cell:
            self._cell, self._known, self._tested, self.distilled = cell, {}, {}, {}
        return self._make(case.method, case.statistics, cell, refit=started_refitted(case))

    def bare(self, case: Case, cell: Cell) -> Start:
        """The network of ``--no-refit``."""
        return self._make(case.method, case.statistics, cell, refit=False)

    def test(self, network: nn.Module) -> Fidelity:
        """A start of the present budget on the test images, measured once."""
        if id(network) not in self._tested:
            self._tested[id(network)] = fidelity(self.subject.teacher, network, self.subject.test)
        return self._tested[id(network)]

    def _make(self, method: str, statistics: str, cell: Cell, *, refit: bool) -> Start:
        refit = refit and refittable(method, statistics)
        key = (method, statistics, cell, refit)
        if key not in self._known:
            try:
                self._known[key] = self._new(method, statistics, cell, refit)
            except HypercompressError as error:
                self._known[key] = Start(None, str(error))
        return self._known[key]

    def _new(self, method: str, statistics: str, cell: Cell, refit: bool) -> Start:
        if method == "random":
            network = self._shape(cell)
            return Start(from_scratch(network, self.subject.architecture, self.seed))
        if method == "torch-pruning":
            return self._pruning(cell)
        plan = self.imagined(IMAGINED[method], method == RENORMALIZED) if method in IMAGINED else None
        plan = plan or (self.weights_alone if statistics == NONE else self.measured)
        note = ""
        if method == "kfac-search":
            rival = self._make("hypernet", statistics, cell, refit=refit)
            if rival.network is None:
                return Start(None, f"the hypernetwork, whose time it gets, has no student: {rival.note}")
            time = rival.facts["seconds"]
            kfac = replace(plan, generator=ANALYTIC["kfac"])
            plan, tries = searched(kfac, cell.budget, time, refit=refit, seed=self.seed)
            note = f"{tries} tries in {time:.1f} s"
        elif method != RENORMALIZED:  # whose generator `prepare` chose
            plan = replace(plan, generator=self.hypernetworks.load(method, self.seed))
        student = finish(
            plan,
            cell.budget,
            refit=refit,
            norms=judged(method, statistics),
            both=method != OUTPUTS,
            architecture=self.subject.architecture,
        )
        report = student.report
        facts = {
            "refit": report["refitted"] != Refit.NONE,
            "strength": report["generator"]["strength"],
            "seconds": report["seconds"],
        }
        return Start(student.model, note, facts)

    def _shape(self, cell: Cell) -> nn.Module:
        """The `kfac` student, whose shape and size other methods take."""
        network = self._make("kfac", "images", cell, refit=False).network
        assert network is not None  # the budget was found with it
        return network

    def _pruning(self, cell: Cell) -> Start:
        if cell.unit not in self._pruned:
            self._pruned[cell.unit] = self._prune(cell.unit)
        found, size = self._pruned[cell.unit], self._count(cell.unit)(self._shape(cell))
        if isinstance(found, str):
            return Start(None, found)
        if size not in found:
            return Start(None, f"Torch-Pruning stops above {size} {cell.unit}")
        return Start(found[size])

    def _prune(self, unit: Unit) -> dict[int, nn.Module] | str:
        """Pruned networks by the size that they were cut for, or why there are none."""
        count, calibration = self._count(unit), self.subject.draw(self.seed)
        sizes = [count(self._shape(cell)) for cell in self.cells if cell.unit is unit]
        teacher = self.subject.teacher
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of parameters outside layers, which it prunes too
                found = prune(teacher, calibration, sizes, PRUNING_STEPS, count, protected(teacher))
        except PRUNING_ERRORS as error:
            return f"Torch-Pruning: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
        for network in found.values():
            network.zero_grad()
            reestimate_norms(network, list(calibration.images.split(128)))
        return found

    def _count(self, unit: Unit) -> Callable[[nn.Module], int]:
        def macs(network: nn.Module) -> int:
            device = next(network.parameters()).device  # a network that is being pruned is on the CPU
            return size_of(network, self.subject.test.images[:2].to(device))[1]

        return parameters if unit is Unit.PARAMS else macs


def protected(model: nn.Module) -> list[str]:
    """Layers whose outputs Torch-Pruning must leave: the classifier, and fused projections, which it would cut across
    the heads of attention.
    """
    classifier = model.get_classifier()  # type: ignore[operator]  # a zoo holds timm's models
    return [name for name, module in model.named_modules() if module is classifier or name.endswith("qkv")]


def from_scratch(student: nn.Module, architecture: Architecture | None, seed: int) -> nn.Module:
    """The student's shape with new weights: factors as torch begins them, everything else as timm does."""
    fresh = from_random(student, seed)
    if architecture is None:
        return fresh
    begun, device = build(copy.deepcopy(architecture)).state_dict(), next(student.parameters()).device
    state = fresh.state_dict()
    same = {n: t.to(device) for n, t in begun.items() if n in state and t.shape == state[n].shape}
    fresh.load_state_dict({**state, **same})
    return fresh
