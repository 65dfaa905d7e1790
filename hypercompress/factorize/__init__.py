"""Factoring one layer: directions, low-rank modules."""

from hypercompress.factorize.layers import LowRank, LowRankConv2d, LowRankLinear, fill, low_rank_like
from hypercompress.factorize.linalg import Frame, Metric, balanced, frame_of, lost_output, plain_frame, weighted_frame

__all__ = [
    "Frame",
    "LowRank",
    "LowRankConv2d",
    "LowRankLinear",
    "Metric",
    "balanced",
    "fill",
    "frame_of",
    "lost_output",
    "low_rank_like",
    "plain_frame",
    "weighted_frame",
]
