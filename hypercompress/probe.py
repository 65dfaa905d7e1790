"""How many times the predicted KL is really had: one student is made and measured, and stands for the others.

The additive model takes the positions of an image, and the layers of a network, for independent (Grosse & Martens
2016, section 3; Martens & Grosse 2015, section 4). Tokens of a transformer are not, in each layer alike, so what is
predicted there is too small by about one factor for the whole network; and a refit, of which the model does not know,
leaves about one share of it (LOG.md, 2026-11-26).
"""

import math
from dataclasses import replace

from hypercompress.allocation import pareto
from hypercompress.errors import GeneratorError
from hypercompress.fidelity import compare
from hypercompress.generator import ANALYTIC
from hypercompress.generator.protocol import Directions
from hypercompress.preparation import Plan
from hypercompress.reconstruction import reconstruct, refit_batch
from hypercompress.specs import Budget, KlScale, Unit
from hypercompress.student import build_student

PROBE = (
    3e-3  # nats predicted for the student that is measured: a quadratic still holds, and images still tell it from 0
)


def kl_scale(plan: Plan, known: Directions | None = None, *, refit: bool = True) -> KlScale:
    """The measured KL of a `kfac` student divided by its predicted one, where that is nearest to `PROBE` nats.

    The student is measured on the calibration images that are held out of the statistics: as generated, and with both
    factors refitted, its norms as they are. 1 where there is nothing to measure: no student has a predicted KL above
    0, or the one that was made overflows.

    Args:
        plan: with calibration batches.
        known: the directions of `kfac`, if they were found before.
        refit: whether students will be refitted; else both scales are those of students as generated.

    Raises:
        GeneratorError: no calibration batches.
    """
    spec, sketches, split = plan.spec, plan.sketches, plan.split
    if split is None:
        raise GeneratorError("received a plan without calibration data; expected images to measure on; pass data")
    kfac = ANALYTIC["kfac"]
    known = known or kfac.directions(spec, sketches)
    points = pareto(spec, kfac.energies(known.outputs), Unit.PARAMS, kfac.energies(known.inputs))
    positive = [point for point in points if point.predicted_kl > 0]
    if not positive:
        return KlScale()
    nearest = min(positive, key=lambda point: abs(math.log(point.predicted_kl / PROBE)))
    generation = replace(kfac, known=known).generate(spec, sketches, Budget(params=nearest.share))
    student, images = build_student(plan.teacher, spec, generation), [*split.select, *split.confirm]

    def scale() -> float:
        predicted = generation.plan.predicted_kl
        measured = compare(plan.teacher, student, images, plan.run).kl
        return measured / predicted if predicted and 0 < measured < math.inf else 1.0

    generated = scale()
    if not refit:
        return KlScale(generated, generated)
    reconstruct(plan.teacher, student, spec, sketches, refit_batch(spec, split), plan.run)
    return KlScale(generated, scale())
