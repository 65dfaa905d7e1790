"""Factoring one matrix: directions and their energy."""

from hypercompress.factorize.linalg import Frame, Metric, balanced, frame_of, lost_output, plain_frame, weighted_frame

__all__ = [
    "Frame",
    "Metric",
    "balanced",
    "frame_of",
    "lost_output",
    "plain_frame",
    "weighted_frame",
]
