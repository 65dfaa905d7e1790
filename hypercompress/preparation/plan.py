"""A teacher prepared: all that is known before there is a budget."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hypercompress.generator import Generator
from hypercompress.running.calibration import CalibrationSplit
from hypercompress.running.calling import ForwardFn, call_model
from hypercompress.running.renormalization import Moments
from hypercompress.specs import KlScale, ModelSpec


@dataclass(frozen=True)
class Plan:
    """All that is known before a student is built; `preparation.prepare` makes it, `compress.finish` goes on from it.

    Args:
        original: the model as it was given.
        teacher: what is factored: a copy with its attention layers unpacked, or the model itself if none can be;
            renormalised if there are ``own`` moments, so that students are compared with ``original``.
        spec, sketches: the teacher's.
        split: calibration batches, by use.
        generator: what makes the factors.
        run: how a model is run, teacher or student: as `prepare` was told, or as models mostly are.
        timed: the batch that latency is measured with, if it was.
        kl_scale: what a predicted KL is multiplied by (`probe.kl_scale`).
        unlike: the data are of another kind than the model's own: they say nothing of what a student is worth on that.
        own: the BatchNorms' moments that a student is given back; empty if ``teacher`` is not renormalised.
        stand_in: images of noise that it was made with for want of others.
        noise_share: the weight of noise in the statistics of images (`curvature/steadying.py`).
        numbers: outputs are read as numbers, whatever their shape.
        class_axis: where a model's own outputs have their classes, if not where `outputs.class_axis` says; ``run``
            moves it there.
    """

    original: nn.Module
    teacher: nn.Module
    spec: ModelSpec
    sketches: dict[str, Any]
    split: CalibrationSplit | None
    generator: Generator
    run: ForwardFn = call_model
    timed: Any = None
    kl_scale: KlScale = field(default_factory=KlScale)
    unlike: bool = False
    own: Moments = field(default_factory=dict)
    stand_in: int = 0
    noise_share: float = 0.0
    numbers: bool = False
    class_axis: int | None = None
