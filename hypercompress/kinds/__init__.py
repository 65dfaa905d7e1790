"""Kinds of layers: how a module is a matrix, and what its low-rank twin is."""

from hypercompress.kinds import standardised as _standardised  # noqa: F401  (registers timm's convolutions)
from hypercompress.kinds.conv import ConvKind, LowRankConv
from hypercompress.kinds.groups import by_group
from hypercompress.kinds.linear import LinearKind, LowRankLinear
from hypercompress.kinds.low_rank import (
    LowRank,
    Projected,
    as_weight,
    factors_of,
    fill,
    frozen_as,
    low_rank_layers,
    matrix,
    weight_of,
)
from hypercompress.kinds.protocol import LayerKind
from hypercompress.kinds.registry import kind_of, known_kind, low_rank_like, register_kind, told
from hypercompress.kinds.transposed import LowRankTransposed, TransposedKind

__all__ = [
    "ConvKind",
    "LayerKind",
    "LinearKind",
    "LowRank",
    "LowRankConv",
    "LowRankLinear",
    "LowRankTransposed",
    "Projected",
    "TransposedKind",
    "as_weight",
    "by_group",
    "factors_of",
    "fill",
    "frozen_as",
    "kind_of",
    "known_kind",
    "low_rank_layers",
    "low_rank_like",
    "matrix",
    "register_kind",
    "told",
    "weight_of",
]
