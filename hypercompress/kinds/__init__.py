"""Kinds of layers: how a module is a matrix, and what its low-rank twin is."""

from hypercompress.kinds import standardised as _standardised  # noqa: F401  (registers timm's convolutions)
from hypercompress.kinds.conv import ConvKind, LowRankConv
from hypercompress.kinds.linear import LinearKind, LowRankLinear
from hypercompress.kinds.low_rank import LowRank, Projected, factors_of, fill, matrix
from hypercompress.kinds.protocol import LayerKind
from hypercompress.kinds.registry import kind_of, low_rank_like, register_kind

__all__ = [
    "ConvKind",
    "LayerKind",
    "LinearKind",
    "LowRank",
    "LowRankConv",
    "LowRankLinear",
    "Projected",
    "factors_of",
    "fill",
    "kind_of",
    "low_rank_like",
    "matrix",
    "register_kind",
]
