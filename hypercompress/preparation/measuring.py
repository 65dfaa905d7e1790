"""Sketches with data: of the images that are to make the statistics, and later of those that were held out."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from hypercompress.curvature.fisher import Probing
from hypercompress.curvature.mixing import mixed
from hypercompress.generator import AnalyticGenerator
from hypercompress.preparation.example import samples_of_a_pass
from hypercompress.preparation.plan import Plan
from hypercompress.running.batches import pieces
from hypercompress.running.calibration import CalibrationSplit
from hypercompress.running.calling import ForwardFn, Progress, taking
from hypercompress.running.memory import give_back
from hypercompress.running.nested import batch_size
from hypercompress.sketch import sketch
from hypercompress.specs import ModelSpec, Sketch


def sketched(
    teacher: nn.Module,
    spec: ModelSpec,
    split: CalibrationSplit | None,
    forward_fn: ForwardFn | None,
    *,
    probing: Probing | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    made: bool = False,
) -> dict[str, Sketch]:
    """The sketches of every candidate, with data of those that a gradient reaches.

    Args:
        split: its statistics are measured; ``None``: the weights alone are read.
        probing: ``None``: what suits so many samples.
        made: the images may be noise, in batches that nobody chose.
    """
    if split is None:
        return sketch(teacher, spec, None)
    batches: Iterable[Any] = split.statistics
    if made or next(teacher.parameters()).is_cpu:  # where small batches take no longer, and memory is all there is
        batches = pieces(batches, samples_of_a_pass(spec))
    probing = probing or Probing.of(split.samples)
    found = sketch(teacher, spec, batches, forward_fn=taking(forward_fn), probing=probing, seed=seed, progress=progress)
    give_back()
    return {name: one for name, one in found.items() if one.curvature is not None}


def with_held_out(plan: Plan) -> Plan:
    """The plan with the statistics of all of its images: those that were held out are measured, and added.

    They still select and confirm, but of a student of this plan, which has seen them, what they say is optimistic.
    What stood in for more images, of noise or of the classifier's directions, keeps its place with less weight.
    """
    split = plan.split
    assert split is not None  # the plan has images
    held_out = [*split.select, *split.confirm]
    probing = Probing.of(split.samples)  # as the others were: the Fisher of softened predictions is another one
    # Signs of their own, whatever the seed was: a plan does not keep it.
    found = sketched(plan.teacher, plan.spec, CalibrationSplit(held_out, (), ()), plan.run, probing=probing, seed=1)
    count, noise = sum(map(batch_size, held_out)), plan.noise_share
    share = count / (split.samples / (1 - noise) + count)
    every = CalibrationSplit([*split.statistics, *held_out], split.select, split.confirm)
    sketches = mixed(plan.sketches, found, share)
    generator = plan.generator
    if isinstance(generator, AnalyticGenerator):
        generator = replace(generator, known=None)  # directions in the metric of before
    return replace(plan, sketches=sketches, split=every, generator=generator, noise_share=noise * (1 - share))
