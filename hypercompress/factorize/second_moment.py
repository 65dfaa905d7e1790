"""Second moments of rows, summed piece by piece: of the symmetric part only what lies on or above the diagonal.

BLAS has a routine for that (syrk) which torch does not offer. In blocks of columns, each with the rows down to its own
diagonal, four of them take two thirds of the time of the whole product.
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

BLOCKS, WIDE = 4, 256  # blocks of columns, where there are at least so many columns


def add_second_moment(total: Float[Tensor, "*g m d"], rows: Float[Tensor, "*g n m"]) -> None:
    """Add ``rows^T rows[:, -d:]``, group by group; what is below the diagonal of the last d rows is left to `mirror`.

    Args:
        total: of the last d columns with all m.
    """
    if rows.ndim > 2:
        total.baddbmm_(rows.mT, rows[..., -total.shape[-1] :])
        return
    others = total.shape[0] - total.shape[1]
    for start, end in _blocks(total.shape[1]):
        reach = others + end
        total[:reach, start:end].addmm_(rows[:, :reach].T, rows[:, others + start : reach])


def mirror(total: Float[Tensor, "*g m d"]) -> None:
    """Complete, in place, the last d rows of what `add_second_moment` has summed."""
    if total.ndim > 2:
        return
    square, blocks = total[total.shape[0] - total.shape[1] :], _blocks(total.shape[1])
    for place, (start, end) in enumerate(blocks):
        for first, last in blocks[:place]:
            square[start:end, first:last] = square[first:last, start:end].T


def _blocks(width: int) -> list[tuple[int, int]]:
    """First and last column of each block."""
    if width < WIDE:
        return [(0, width)]
    bounds = [width * block // BLOCKS for block in range(BLOCKS + 1)]
    return list(pairwise(bounds))
