"""What the second form of a convolution gains: factored on one side alone, or on one or both as the allocation finds.

    python -m benchmarks.menu --data fashion_mnist:ROOT --teacher FOLDER [FOLDER ...] [--seeds 3] [--out DIR]

The `kfac` generator at equal parameters and at equal multiply-accumulates of the whole network, nothing trained or
refitted, on all test images. Writes ``menu.csv``. Two CPU cores, about ten minutes for two teachers.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.shared.common import RESULTS, Results, Set, digest, fidelity, markdown, read_set, say, spread
from benchmarks.shared.figures import values
from hypercompress.compress import finish
from hypercompress.errors import BudgetError
from hypercompress.generator import ANALYTIC
from hypercompress.models import load_model
from hypercompress.preparation import Plan, prepare
from hypercompress.specs import Budget

KEY = ("teacher", "unit", "share", "forms", "seed")
SHARES = (0.3, 0.15, 0.06, 0.03)
FORMS = {"one side": replace(ANALYTIC["kfac"], both=False), "one or both": ANALYTIC["kfac"]}
IMAGES = 1024


def run(name: str, plans: Sequence[Plan], test: Set, weights: str, results: Results) -> None:
    """All rows of a teacher that are missing; ``plans`` has one for each seed."""
    for seed, plan in enumerate(plans):
        for unit in ("params", "macs"):
            for share in SHARES:
                for forms, generator in FORMS.items():
                    row = {"teacher": name, "unit": unit, "share": share, "forms": forms, "seed": seed}
                    if results.has({**row, "weights": weights}):
                        continue
                    try:
                        budget = Budget(**{unit: share})
                        student = finish(replace(plan, generator=generator), budget, refit=False, norms=False)
                    except BudgetError as error:
                        say(f"{name}, {forms}: {error}")
                        continue
                    found, report = fidelity(plan.teacher, student, test), student.report
                    made = {
                        "params": report["student"]["params"],
                        "macs": report["student"]["macs"],
                        "layers": len(student.ranks),
                        "both_sides": len(student.input_ranks),
                        "predicted_kl": report["predicted_kl"],
                        "kl": found.kl,
                        "agreement": found.agreement,
                        "top1": found.top1_student,
                    }
                    results.add({**row, **made, "weights": weights})
                    say(f"{name}, {unit} {share:g}, {forms}, seed {seed}: KL {found.kl:.4f}")


def table(results: Results) -> str:
    """KL and agreement by teacher, unit and share."""
    lines = []
    for name in values(results, "teacher"):
        for unit in values(results, "unit"):
            for share in SHARES:
                cells = []
                for forms in FORMS:
                    chosen = {"teacher": name, "unit": unit, "share": share, "forms": forms}
                    cells += [spread(results.numbers(c, **chosen), d, s) for c, d, s in MEASURES]
                lines.append([name, f"{share:.0%} of the {unit}", *cells])
    header = [f"{measure}, {forms}" for forms in FORMS for measure in ("KL", "agreement")]
    return markdown(("teacher", "budget", *header), lines)


MEASURES = (("kl", 4, 1.0), ("agreement", 1, 100.0))


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DATA", help="fashion_mnist:ROOT, as on the command line")
    parser.add_argument("--teacher", type=Path, nargs="+", required=True, metavar="FOLDER", help="trained networks")
    parser.add_argument("--seeds", type=int, default=3, help="draws of calibration images (default: 3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / "menu.csv", KEY)
    for folder in options.teacher:
        teacher, architecture = load_model(str(folder))
        train, test = (read_set(teacher, options.data, train=part) for part in (True, False))
        plans = []
        for seed in range(options.seeds):
            chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:IMAGES]
            plans.append(prepare(teacher, train.images[chosen].split(64), "kfac", seed=seed))
        count = sum(parameter.numel() for parameter in teacher.parameters())
        name = architecture.name if architecture is not None else folder.name
        run(f"{name}, {count / 1e6:.1f} M", plans, test, digest(folder), results)
    say(table(results))


if __name__ == "__main__":
    main()
