"""A fused qkv projection factored as one layer or as three: which is better at equal size.

    python -m benchmarks.qkv --data fashion_mnist:ROOT --teacher FOLDER [FOLDER ...] [--seeds 3] [--out DIR]

The `kfac` generator on trained transformers, nothing trained or refitted, all test images. Writes ``qkv.csv``. One CPU
core, some minutes for each teacher.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.shared.common import RESULTS, Results, digest, fidelity, read_set, say
from hypercompress.compress import finish
from hypercompress.errors import BudgetError
from hypercompress.models import load_model
from hypercompress.packed.projection import NAME
from hypercompress.preparation import prepare
from hypercompress.specs import Budget

KEY = ("teacher", "unit", "share", "blocks", "seed")
SHARES = (0.5, 0.35, 0.25, 0.15)
IMAGES = 1024


def keep_fused(model: nn.Module) -> nn.Module:
    """The model with its projections marked so that they are not taken apart: a layer with a hook never is."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == NAME:
            module.register_forward_hook(lambda *_: None)
    return model


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DATA", help="fashion_mnist:ROOT, as on the command line")
    parser.add_argument("--teacher", type=Path, nargs="+", required=True, metavar="FOLDER", help="trained transformers")
    parser.add_argument("--seeds", type=int, default=3, help="draws of calibration images (default: 3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / "qkv.csv", KEY)
    for folder in options.teacher:
        compare_teacher(folder, options.data, options.seeds, results)
    say(verdict(results))


def compare_teacher(folder: Path, data: str, seeds: int, results: Results) -> None:
    """All rows of one teacher."""
    weights, teacher = digest(folder), load_model(str(folder))[0]
    train, test = (read_set(teacher, data, train=part) for part in (True, False))
    for seed in range(seeds):
        images = train.images[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:IMAGES]]
        for blocks in (1, 3):
            model = load_model(str(folder))[0]
            plan = prepare(keep_fused(model) if blocks == 1 else model, images.split(64), "kfac", seed=seed)
            for unit in ("params", "macs"):
                for share in SHARES:
                    row: dict[str, Any] = {"teacher": folder.name, "unit": unit, "share": share, "blocks": blocks}
                    row |= {"seed": seed, "weights": weights}
                    if results.has(row):
                        continue
                    try:
                        student = finish(plan, Budget(**{unit: share}), refit=False, norms=False)
                    except BudgetError as error:
                        say(f"{folder.name}, {blocks}: {error}")
                        results.add({**row, "predicted_kl": None, "kl": None, "agreement": None})
                        continue
                    found = fidelity(plan.teacher, student, test)
                    predicted = student.report["predicted_kl"]
                    results.add({**row, "predicted_kl": predicted, "kl": found.kl, "agreement": found.agreement})
                    say(f"{folder.name}, {unit} {share:g}, {blocks}, seed {seed}: {predicted:.5f}, {found.kl:.5f}")


def verdict(results: Results) -> str:
    """In how many pairs three blocks are better, predicted and measured, and by what factor."""
    pairs = [
        [results.numbers(column, **{**{k: row[k] for k in KEY}, "blocks": blocks}) for blocks in (1, 3)]
        for column in ("predicted_kl", "kl")
        for row in results.rows
        if row["blocks"] == "1"
    ]
    half = len(pairs) // 2
    lines = []
    for name, found in (("predicted", pairs[:half]), ("measured", pairs[half:])):
        ratios = sorted(three[0] / one[0] for one, three in found if one and three and one[0] > 0)
        if ratios:
            better = sum(ratio < 1 for ratio in ratios)
            median = ratios[len(ratios) // 2]
            lines.append(
                f"{name} KL of three blocks is lower in {better} of {len(ratios)} pairs; "
                f"ratio: median {median:.2f}, least {ratios[0]:.2f}, most {ratios[-1]:.2f}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
