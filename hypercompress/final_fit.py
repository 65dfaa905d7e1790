"""The chosen student made once more, of all images: nothing is left that some of them would have to be held out for.

As a search over settings fits the best of them to all data in the end (``refit=True`` of scikit-learn's
`GridSearchCV`). A quarter or so of the images is held out; where they are few, the statistics miss each of them
(LOG.md, 2026-11-30).
"""

from collections.abc import Callable

from hypercompress.choices import Chosen, followed
from hypercompress.guard import Judge
from hypercompress.preparation import Plan
from hypercompress.preparation.measuring import with_held_out
from hypercompress.running.nested import batch_size
from hypercompress.specs import Budget, Generation
from hypercompress.student import Student

MOST = 1024  # images from which on a third more in the statistics is hardly worth the time


def fit_to_all(
    plan: Plan, budget: Budget, built: Callable[[Generation], Student], judge: Judge, chosen: Chosen, *, norms: bool
) -> tuple[Plan, Chosen, bool]:
    """The plan of all images, and what the same choices make of it; or what was given, where that is no nearer.

    With the images of another kind than the model's own nothing is done: noise can be had in any number.

    Args:
        plan: that the student was chosen with.
        budget: of parameters or multiply-accumulates; a student of other ranks might miss one of latency.
        built: makes a student of a generation.
        norms: whether norms may get other moments.
        judge: which images count again, though the new student has seen them: it must not be further away even there.

    Returns:
        The plan, what was chosen, and whether that is of all images.
    """
    split = plan.split
    assert split is not None  # there was something to choose by
    if plan.unlike or sum(map(batch_size, (*split.statistics, *split.select, *split.confirm))) >= MOST:
        return plan, chosen, False
    whole = with_held_out(plan)
    made = followed(whole, budget, built, judge, chosen, norms=norms)
    return (whole, made, True) if judge.kl(made.student) <= judge.kl(chosen.student) else (plan, chosen, False)
