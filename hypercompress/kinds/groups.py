"""Grouped layers: independent matrices side by side, each on its own channels; one matrix has no axis of groups."""

from jaxtyping import Float
from torch import Tensor


def stacked(matrix: Tensor, groups: int) -> Tensor:
    """Rows [out, d] of all groups, one group after another, as a matrix for each group: [g, o, d]; of one, [out, d]."""
    # torch.compile comes here when a model reads a weight, and cannot follow a check of shapes.
    return matrix if groups == 1 else matrix.unflatten(0, (groups, -1))


def by_group(rows: Float[Tensor, "n c"], groups: int) -> Float[Tensor, "*g n c_g"]:
    """Channels of all groups, one group after another, as rows of each group's own channels."""
    return rows if groups == 1 else rows.unflatten(1, (groups, -1)).movedim(1, 0)
