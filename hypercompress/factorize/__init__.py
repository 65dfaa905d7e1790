"""Factoring one matrix: directions and their energy."""

from hypercompress.factorize.linalg import (
    Frame,
    Metric,
    applied,
    balance,
    balanced,
    by_channel,
    frame_of,
    input_curvature,
    lost_output,
    plain_frame,
    projected,
    squared,
    weighted_frame,
)

__all__ = [
    "Frame",
    "Metric",
    "applied",
    "balance",
    "balanced",
    "by_channel",
    "frame_of",
    "input_curvature",
    "lost_output",
    "plain_frame",
    "projected",
    "squared",
    "weighted_frame",
]
