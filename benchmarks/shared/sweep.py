"""Every generator at every size, as generated: the rows that the benchmarks of both networks share."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.shared.common import Results, Set, budget_of, digest, fidelity, say
from hypercompress.architecture import Architecture
from hypercompress.compress import finish
from hypercompress.errors import BudgetError
from hypercompress.generator import Generator, load_generator
from hypercompress.generator.registry import RELEASED
from hypercompress.preparation import Plan
from hypercompress.running.norms import reestimate_norms
from hypercompress.specs import Refit

WITH_DATA = ("svd", "whitened", "kfac", "hypernet")
WITHOUT_DATA = ("svd", "prior", "hypernet")
SYNTHETIC = ("kfac", "hypernet")
NOISE = ("kfac",)  # as ``generate --data noise``, whose generator is the plan's own
DATA = {"images": WITH_DATA, "none": WITHOUT_DATA, "synthetic": SYNTHETIC, "noise": NOISE}
KEY = ("data", "share", "generator", "seed")
MEASURES = {"top1": "top1_student", "agreement": "agreement", "kl": "kl"}


@dataclass(frozen=True)
class Generators:
    """Generators by their names in the tables.

    Args:
        hypernet: ``hypernet`` for the released hypernetwork, or the folder of another.
    """

    hypernet: str = "hypernet"

    def load(self, name: str) -> Generator:
        """The generator."""
        return load_generator(self.hypernet if name == "hypernet" else name)

    def given_to(self, plan: Plan, name: str) -> Plan:
        """The plan with the generator; of noise it has its own, which gives more of the lost variance back."""
        return plan if plan.unlike else replace(plan, generator=self.load(name))

    def weights(self, name: str, teacher: str) -> str:
        """Names of all weights that a student depends on; ``teacher`` is the digest of the teacher's."""
        folder = RELEASED if self.hypernet == "hypernet" else Path(self.hypernet)
        return f"{teacher}+{digest(folder)}" if name == "hypernet" else teacher


@dataclass(frozen=True)
class Sweep:
    """One network, all generators and sizes.

    Args:
        measure: inspects the teacher and measures the statistics of a seed on one of `DATA`. The generator in the plan
            does not matter.
        architecture: how to build the teacher again.
        teacher: digest of the teacher's weights.
        generators: where the generators come from.
        test: images that are measured on.
        shares: sizes, as shares of the parameters of the layers that may be factored.
    """

    measure: Callable[[str, int], Plan]
    architecture: Architecture | None
    teacher: str
    generators: Generators
    test: Set
    shares: Sequence[float]

    def run(self, results: Results, seeds: int, names: Sequence[str], data: Sequence[str] = tuple(DATA)) -> None:
        """All rows that are missing: every seed with images, real ones first, and once without."""
        passes = [(source, seed) for seed in range(seeds) for source in data if source != "none" or seed == 0]
        for source, seed in passes:
            plan: Plan | None = None
            for share in self.shares:
                for name in (name for name in DATA[source] if name in names):
                    key = {"data": source, "share": share, "generator": name}
                    row = {**key, "seed": seed, "weights": self.generators.weights(name, self.teacher)}
                    if results.has(row):
                        continue
                    plan = plan or self.measure(source, seed)
                    found = self.student(self.generators.given_to(plan, name), share)
                    if found is not None:
                        results.add({**key, "seed": seed, **found, "weights": row["weights"]})
                        shown = ", ".join(f"{k} {found[k]:.4f}" for k in MEASURES if found[k] is not None)
                        say(f"{source}, seed {seed}, {share:.2%}, {name}: {shown}")

    def student(self, plan: Plan, share: float) -> dict[str, Any] | None:
        """One student as a user gets it, and beside it (``_generated``) as the generator made it and (``_norms``) that
        with new norm moments, whatever they do. ``None`` if the size is out of reach.
        """
        budget, start = budget_of(plan.spec, share), time.perf_counter()
        try:
            student = finish(plan, budget, architecture=self.architecture)
        except BudgetError as error:
            say(f"{plan.generator.name}: {error}")
            return None
        seconds, report = time.perf_counter() - start, student.report
        given = first = fidelity(plan.original, student, self.test)
        renewed = None
        if plan.split is not None:
            bare = finish(plan, budget, refit=False, norms=False, architecture=self.architecture)
            first = fidelity(plan.original, bare, self.test)
            if not plan.own:  # else the images are none that the model's own moments are for
                reestimate_norms(bare, plan.split.statistics)
                renewed = fidelity(plan.original, bare, self.test)
        sides = {"": given, "_generated": first, "_norms": renewed}
        return {
            "params": report["student"]["params"],
            "macs": report["student"]["macs"],
            **{f"{name}{side}": getattr(f, key, None) for side, f in sides.items() for name, key in MEASURES.items()},
            "top1_teacher": given.top1_teacher,
            "predicted_kl": report["predicted_kl"],
            "refit": report["refitted"] != Refit.NONE,
            "norms": report["norms"],
            "strength": report["generator"]["strength"],
            "seconds": seconds,
        }
