"""With few calibration images: their statistics alone, and steadied by those of noise (``--steady``).

    python -m benchmarks.steady --root DATA --teacher FOLDER [FOLDER ...] [--assets ASSETS] [--images 16 32 128 512]
        [--out benchmarks/results]

`kfac` students at a few sizes, as ``generate --no-final-fit`` makes them, a quarter of the images held out. KL and
agreement on up to 2,000 test images. ``--teacher`` takes folders of the zoo (`lightning_modules.zoo`), whose index says
what data each was trained on, of networks with BatchNorms; ``--assets`` adds EfficientNet-Lite0 (`efficientnet_lite0`)
and its photographs. Writes ``steady.csv`` and prints, for each number of images, the geometric mean of the steadied KL
over the plain one; rows that are there are not made again. One CPU core, two to four minutes a teacher.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor, nn

from benchmarks.efficientnet_lite0 import file_of, open_teacher
from benchmarks.few_images import BUDGETS
from benchmarks.few_images import arguments as of_few_images
from benchmarks.prediction import data_of
from benchmarks.shared.common import Results, digest, say
from benchmarks.shared.pairs import Pairs, Subject
from benchmarks.without_images import REAL
from hypercompress.models import load_model
from hypercompress.preparation import Plan, prepare
from hypercompress.specs import Budget

IMAGES = (16, 32, 128, 512)
REAL_BUDGETS = tuple(Budget(params=share) for share in (0.8, 0.65, 0.5, 0.35))


def _prepared(teacher: nn.Module, batches: Sequence[Tensor], steady: bool) -> Plan:
    return prepare(teacher, batches, "kfac", steady=steady)


PAIRS = Pairs("steady", "steadied", _prepared)


def verdict(pairs: Pairs, results: Results) -> str:
    """A line for each number of images; EfficientNet-Lite0, whose images are few, stands for itself."""
    others = [row for row in results.rows if row["teacher"] != REAL]
    real = [row for row in results.rows if row["teacher"] == REAL]
    return "\n".join([*pairs.verdict(others), *pairs.verdict(real, f"{REAL}, ")])


def subjects(options: Namespace) -> Iterator[Subject]:
    """The teachers that are asked for, each opened when its turn comes."""
    for folder in options.teacher:
        teacher, _ = load_model(str(folder))
        yield Subject(folder.name, teacher, digest(folder), data_of(folder, options.root), BUDGETS)
    if options.assets is not None:
        teacher, _ = open_teacher(options.assets)
        photographs = str(options.assets / "photos")
        yield Subject(REAL, teacher, digest(file_of(options.assets)), photographs, REAL_BUDGETS)


def arguments(description: str | None) -> ArgumentParser:
    """What a program about few images is asked, whose networks may be EfficientNet-Lite0, too."""
    parser = of_few_images(description, IMAGES, required=False)
    parser.add_argument("--assets", type=Path, metavar="ASSETS", help="folder of EfficientNet-Lite0 and photographs")
    return parser


def asked(parser: ArgumentParser, words: Sequence[str] | None) -> Namespace:
    """The options; there is a network at least."""
    options = parser.parse_args(words)
    if not options.teacher and options.assets is None:
        parser.error("received neither --teacher nor --assets; expected one of them")
    return options


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    options = asked(arguments(__doc__), words)
    results = Results(options.out / "steady.csv", PAIRS.key)
    for subject in subjects(options):
        PAIRS.run(subject, options.images, results)
    say(verdict(PAIRS, results))


if __name__ == "__main__":
    main()
