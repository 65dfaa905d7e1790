"""The images that were held out: left out of the student, and in it in the end (``--no-final-fit``, and without).

    python -m benchmarks.final_fit --root DATA --teacher FOLDER [FOLDER ...] [--assets ASSETS] [--steady]
        [--images 16 32 128 512] [--out benchmarks/results]

`kfac` students at a few sizes, made by the same choices of the same images, of which a quarter is held out for these.
KL and agreement on up to 2,000 test images. ``--teacher`` and ``--assets`` as in `benchmarks.steady`; ``--steady``:
noise steadies the statistics of both. Writes ``final_fit.csv``, or ``final_fit_steady.csv``, and prints, for each
number of images, the geometric mean of the KL with all images over that without; rows that are there are not made
again. One CPU core, two to four minutes a teacher.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from benchmarks.shared.common import Results, say
from benchmarks.shared.pairs import Pairs
from benchmarks.steady import arguments, asked, subjects, verdict
from hypercompress.compress import finish
from hypercompress.preparation import Plan, prepare
from hypercompress.specs import Budget
from hypercompress.student import Student


def pairs(steady: bool) -> Pairs:
    """Students of some images with the held-out ones and without."""

    def prepared(teacher: nn.Module, batches: Sequence[Tensor], _: bool) -> Plan:
        return prepare(teacher, batches, "kfac", steady=steady)

    def finished(plan: Plan, budget: Budget, given: bool) -> Student:
        return finish(plan, budget, final_fit=given)

    return Pairs("final_fit", "of all images", prepared, finished)


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = arguments(__doc__)
    parser.add_argument("--steady", action="store_true", help="with statistics that noise steadies")
    options = asked(parser, words)
    compared = pairs(options.steady)
    results = Results(options.out / f"final_fit{'_steady' if options.steady else ''}.csv", compared.key)
    for subject in subjects(options):
        compared.run(subject, options.images, results)
    say(verdict(compared, results))


if __name__ == "__main__":
    main()
