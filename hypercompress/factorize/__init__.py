"""Factoring one matrix: directions and their energy."""

from hypercompress.factorize.linalg import (
    Frame,
    Metric,
    add_outer,
    applied,
    balance,
    balanced,
    by_channel,
    damped,
    frame_of,
    input_curvature,
    lost_output,
    plain_frame,
    projected,
    squared,
    traces,
    weighted_frame,
)
from hypercompress.factorize.regression import least_squares, reduced_rank
from hypercompress.factorize.second_moment import add_second_moment, mirror

__all__ = [
    "Frame",
    "Metric",
    "add_outer",
    "add_second_moment",
    "applied",
    "balance",
    "balanced",
    "by_channel",
    "damped",
    "frame_of",
    "input_curvature",
    "least_squares",
    "lost_output",
    "mirror",
    "plain_frame",
    "projected",
    "reduced_rank",
    "squared",
    "traces",
    "weighted_frame",
]
