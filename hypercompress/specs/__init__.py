"""Frozen data that the parts exchange: what a model is, what it may cost, what was decided.

Shape letters used throughout the package: ``out`` output features of a layer; ``d`` the columns of its
weight matrix (``in`` for a Linear, ``in * kh * kw`` for a convolution); ``m = min(o, d)`` the side on which
curvature is kept; ``c`` input channels; ``r`` a rank; ``q`` an input rank.

A grouped convolution is ``g`` matrices of ``o = out / g`` rows side by side, ``d`` the columns of each. What belongs to
a matrix then has a leading axis ``g``, in the order of the channels; a layer that is one matrix has no such axis.
"""

from hypercompress.specs.budget import COUNTED, Budget, Unit, require_budget
from hypercompress.specs.layers import UNCALLED, LayerSpec, Measured, ModelSpec, Side, Status
from hypercompress.specs.plans import Factors, Finishing, Generation, KlScale, LayerFactors, RankPlan, Refit
from hypercompress.specs.sketches import Curvature, NormStatistics, Sketch

__all__ = [
    "COUNTED",
    "UNCALLED",
    "Budget",
    "Curvature",
    "Factors",
    "Finishing",
    "Generation",
    "KlScale",
    "LayerFactors",
    "LayerSpec",
    "Measured",
    "ModelSpec",
    "NormStatistics",
    "RankPlan",
    "Refit",
    "Side",
    "Sketch",
    "Status",
    "Unit",
    "require_budget",
]
