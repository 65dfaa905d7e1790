"""Students of few images made with and without something, and compared pair by pair."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor, nn

from benchmarks.shared.common import Results, fidelity, read_set, say
from hypercompress.compress import finish
from hypercompress.errors import BudgetError
from hypercompress.preparation import Plan
from hypercompress.specs import Budget
from hypercompress.student import Student

BATCH = 2  # small, so that of 16 images three quarters are measured
TEST = 2000
LEAST = 1e-6  # nats: below that a KL is 0 as far as its mean goes


@dataclass(frozen=True)
class Subject:
    """A teacher and what its students are made and judged on.

    Args:
        weights: digest of the teacher's.
        data: DATA, whose training images calibrate.
        budgets: sizes of the students.
    """

    name: str
    teacher: nn.Module
    weights: str
    data: str
    budgets: Sequence[Budget]


@dataclass(frozen=True)
class Pairs:
    """What students are made with, and without.

    Args:
        column: its name in the rows.
        word: and in what is told.
        prepared: teacher, calibration batches and whether with it -> plan.
        finished: plan, budget and whether with it -> student.
    """

    column: str
    word: str
    prepared: Callable[[nn.Module, Sequence[Tensor], bool], Plan]
    finished: Callable[[Plan, Budget, bool], Student] = lambda plan, budget, _: finish(plan, budget)

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that tell rows apart."""
        return ("teacher", "images", "unit", "share", self.column)

    def run(self, subject: Subject, counts: Sequence[int], results: Results) -> None:
        """All rows of a teacher that are missing, finished as ``generate`` does before the final fit."""
        name, teacher = subject.name, subject.teacher
        test = read_set(teacher, subject.data, train=False, limit=TEST)
        for images, given in ((images, given) for images in counts for given in (False, True)):
            key = {"teacher": name, "images": images, self.column: given, "weights": subject.weights}
            missing = [b for b in subject.budgets if not results.has({**key, "unit": str(b.unit), "share": b.share})]
            if not missing:
                continue
            train = read_set(teacher, subject.data, train=True, limit=images, shuffled=True)
            plan = self.prepared(teacher, train.images.split(BATCH), given)
            assert plan.split is not None  # images were given
            for budget in missing:
                try:
                    student = self.finished(plan, budget, given)
                except BudgetError as error:
                    say(f"{name}: {error}")
                    continue
                found = fidelity(teacher, student, test)
                made = {"measured": plan.split.samples, "refitted": student.report["refitted"]}
                row = {**key, "unit": str(budget.unit), "share": budget.share, **made}
                results.add({**row, "kl": found.kl, "agreement": found.agreement})
            say(f"{name}, {images} images{f', {self.word}' if given else ''}")

    def verdict(self, rows: Sequence[Mapping[str, str]], of: str = "") -> list[str]:
        """A line for each number of images: one KL over the other, and how often it is the larger."""
        counts = sorted({int(row["images"]) for row in rows})
        found = ((count, self._compared([row for row in rows if row["images"] == str(count)])) for count in counts)
        return [f"{of}{count} images, {text}" for count, text in found if text]

    def _compared(self, rows: Sequence[Mapping[str, str]]) -> str:
        """Nothing if there are no two to compare: of one teacher and one size."""
        found: dict[bool, dict[tuple[str, ...], tuple[float, float]]] = {False: {}, True: {}}
        for row in rows:
            size = row["teacher"], row["unit"], row["share"]
            found[row[self.column] == "True"][size] = max(float(row["kl"]), LEAST), float(row["agreement"])
        pairs = [(found[False][size], after) for size, after in found[True].items() if size in found[False]]
        if not pairs:
            return ""
        ratios = [math.log(after[0] / before[0]) for before, after in pairs]
        before, after = (100 * fmean(pair[i][1] for pair in pairs) for i in (0, 1))
        return (
            f"{len(pairs)} students: {math.exp(fmean(ratios)):.2f} of the KL "
            f"({sum(ratio > 0 for ratio in ratios)} larger), agreement {before:.1f} -> {after:.1f} %"
        )
