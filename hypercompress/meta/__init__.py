"""One meta-training step as a pure function of a hypernetwork, a teacher and a batch."""

from hypercompress.meta.case import Case, budget_at, prepare_case, sample_budget
from hypercompress.meta.cost import cost_share
from hypercompress.meta.loss import Objective, compression_loss, evaluate_case, meta_loss
from hypercompress.meta.proposal import curvature_error, generate
from hypercompress.meta.statistics import Statistics, measure_statistics, packed, restored

__all__ = [
    "Case",
    "Objective",
    "Statistics",
    "budget_at",
    "compression_loss",
    "cost_share",
    "curvature_error",
    "evaluate_case",
    "generate",
    "measure_statistics",
    "meta_loss",
    "packed",
    "prepare_case",
    "restored",
    "sample_budget",
]
