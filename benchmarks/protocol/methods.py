"""The methods of the held-out protocol by their names, and the generators behind those that have one."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.protocol.ablation import ALLOCATION, CHANNELS, GROUPS, AblatedHypernetwork, Unguarded
from benchmarks.protocol.noise import Kind
from benchmarks.shared.common import digest
from hypercompress.errors import GeneratorError
from hypercompress.generator import ANALYTIC, Generator, HypernetGenerator, Hypernetwork, load_hypernetwork
from hypercompress.generator.registry import RELEASED

IMAGES, NONE = "images", "none"  # where statistics come from
OUTPUTS = "kfac-outputs"  # refitted in the output factor alone, as all were until 2026-11-26
REFITTED = "kfac-refitted"  # distilled from the student as ``generate`` gives it; the others from ``--no-refit``
NORMS = "kfac-norms"  # as `REFITTED`, and BatchNorms are frozen where `lightning_modules.norms` would
ONLY_DISTILLED = (REFITTED, NORMS)  # without steps they are `kfac`
WITH_IMAGES = (
    "svd",
    "whitened",
    "kfac",
    "hypernet",
    "torch-pruning",
    "random",
    "kfac-search",
    OUTPUTS,
    *ONLY_DISTILLED,
)
NOISES: Mapping[str, Kind] = {"kfac-gauss": "gauss", "kfac-pink": "pink"}
UNREFITTED = ("random", "torch-pruning")  # nothing of theirs is ever refitted
SYNTHETIC = ("kfac-synthetic", "hypernet-synthetic")  # as ``generate --data synthetic``: refit, guard and all
RENORMALIZED = "kfac-noise"  # as ``generate --data noise``: the same, BatchNorms renormalised
MADE: Mapping[str, Kind] = {**dict.fromkeys(SYNTHETIC, "synthetic"), RENORMALIZED: "pink"}
IMAGINED: Mapping[str, Kind] = {**NOISES, **MADE}
CLOSED_FORMS = ("svd", "prior", *NOISES)  # without images
WITHOUT_IMAGES = (*CLOSED_FORMS, "hypernet", *MADE)
UNGUARDED, NOISE, ALLOCATION_ALONE = (f"hypernet-{what}" for what in ("unguarded", "noise", "allocation"))
SILENCED = {f"hypernet-no-{group}": (group,) for group in GROUPS} | {
    ALLOCATION_ALONE: tuple(group for group in GROUPS if group not in ALLOCATION)
}
ABLATIONS = (UNGUARDED, NOISE, *SILENCED)
OTHER = "hypernet@"  # and a name: another hypernetwork


@dataclass(frozen=True)
class Hypernetworks:
    """Where the hypernetworks lie, and the generators that are made of them.

    Args:
        folder: the one under judgement; ``None``: the released one.
        others: further ones by name.
    """

    folder: Path | None = None
    others: Mapping[str, Path] = field(default_factory=dict)

    def path(self, method: str) -> Path:
        """The folder behind a method."""
        if method.startswith(OTHER):
            return self.others[method.removeprefix(OTHER)]
        return self.folder or RELEASED

    def weights(self, method: str, teacher: str) -> str:
        """Names of all weights that a student depends on; ``teacher`` is the digest of the teacher's."""
        return f"{teacher}+{digest(self.path(method))}" if method.startswith("hypernet") else teacher

    def load(self, method: str, seed: int) -> Generator:
        """The generator of a method.

        Args:
            seed: of the noise in the place of tokens.

        Raises:
            GeneratorError: no generator has this name.
        """
        if method in {*NOISES, "kfac-synthetic", OUTPUTS, *ONLY_DISTILLED}:
            return ANALYTIC["kfac"]
        if method in ANALYTIC:
            return ANALYTIC[method]
        if method in {"hypernet", "hypernet-synthetic"} or method.startswith(OTHER):
            return HypernetGenerator(_read(self.path(method)))
        if method not in ABLATIONS:
            raise GeneratorError(f"received the method {method}; expected one with a generator; choose among --methods")
        silenced = SILENCED.get(method, ())
        network = AblatedHypernetwork(_read(self.path(method)), silenced, seed if method == NOISE else None)
        return Unguarded(HypernetGenerator(network, name=method))


@functools.cache
def _read(folder: Path) -> Hypernetwork:
    return load_hypernetwork(folder)


@dataclass(frozen=True)
class Case:
    """One place in the protocol's table, but for budget and seed."""

    method: str
    statistics: str
    steps: int


def table(methods: list[str], steps: list[int]) -> list[Case]:
    """Every method with and without images, where that means something, after each number of steps.

    Without images there is nothing to distil with. With images `CHANNELS` are not used, so they cannot be silenced.
    Without steps `ONLY_DISTILLED` are `kfac`.
    """
    without = [m for m in methods if m in WITHOUT_IMAGES or m in ABLATIONS or m.startswith(OTHER)]
    images = [m for m in methods if m not in {"prior", *IMAGINED} and SILENCED.get(m) != (CHANNELS,)]
    found = [
        Case(method, IMAGES, count) for method in images for count in steps if count or method not in ONLY_DISTILLED
    ]
    return found + [Case(method, NONE, 0) for method in without if 0 in steps]


def draws(case: Case) -> bool:
    """Whether anything depends on the seed."""
    return case.statistics == IMAGES or case.method in IMAGINED or case.method == NOISE


def judged(method: str, statistics: str) -> bool:
    """Whether there are images, real or made, that the guard compares students on."""
    return statistics == IMAGES or method in MADE


def refittable(method: str, statistics: str) -> bool:
    """Whether a student may be refitted, in whichever factors."""
    return judged(method, statistics) and method not in UNREFITTED


def started_refitted(case: Case) -> bool:
    """Whether what is measured, or distilled, is the student as ``generate`` gives it."""
    return case.steps == 0 or case.method in ONLY_DISTILLED


def refitted_both(case: Case) -> bool:
    """Whether the students that are measured may be refitted in both factors."""
    return started_refitted(case) and refittable(case.method, case.statistics) and case.method != OUTPUTS


def tilted(case: Case) -> bool:
    """Whether the allocation of the students that are measured may be tilted."""
    analytic = ANALYTIC.get(case.method)
    return refitted_both(case) and (analytic is None or analytic.nats)
