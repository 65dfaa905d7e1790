"""Networks of many classes and few images: the classifier's second moment as it was seen, and completed along its rows.

    python -m lightning_modules.zoo --config benchmarks/many_classes.yaml --out runs/glyphs
    python -m benchmarks.many_classes --root DATA --teacher runs/glyphs/*/ [--images 16 48 96]
        [--out benchmarks/results]

`kfac` students at four sizes, as ``generate --no-final-fit`` makes them of so many images, a quarter of them held out,
with what `curvature/collapse.py` does and without. KL and agreement on up to 2,000 test images. Writes
``many_classes.csv`` and prints, for each number of images, the geometric mean of one KL over the other; rows that are
there are not made again. One CPU core, about two minutes a teacher.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from unittest.mock import patch

from torch import Tensor, nn

from benchmarks.few_images import arguments
from benchmarks.prediction import data_of
from benchmarks.shared.common import Results, digest, say
from benchmarks.shared.pairs import Pairs, Subject
from hypercompress.models import load_model
from hypercompress.preparation import Plan, prepare
from hypercompress.specs import Budget

IMAGES = (16, 48, 96)
BUDGETS = tuple(Budget(params=share) for share in (0.8, 0.6, 0.4, 0.25))


def _prepared(teacher: nn.Module, batches: Sequence[Tensor], completed: bool) -> Plan:
    as_seen = patch("hypercompress.preparation.preparing.completed", lambda _spec, sketches, *_, **__: sketches)
    with nullcontext() if completed else as_seen:
        return prepare(teacher, batches, "kfac")


PAIRS = Pairs("completed", "completed", _prepared)


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    options = arguments(__doc__, IMAGES).parse_args(words)
    results = Results(options.out / "many_classes.csv", PAIRS.key)
    for folder in options.teacher:
        teacher, _ = load_model(str(folder))
        data = data_of(folder, options.root)
        PAIRS.run(Subject(folder.name, teacher, digest(folder), data, BUDGETS), options.images, results)
    say("\n".join(PAIRS.verdict(results.rows)))


if __name__ == "__main__":
    main()
