"""Second moments in blocks: what the whole product gives, from half of it."""

import pytest
import torch

from hypercompress.factorize import add_second_moment, mirror
from hypercompress.factorize.second_moment import BLOCKS, WIDE


@pytest.mark.parametrize("others", [0, 3])
@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7), (5, WIDE), (5, WIDE + 3)])
def test_the_sum_of_pieces_is_the_whole_product(shape: tuple[int, ...], others: int) -> None:
    *groups, count, width = shape
    rows = torch.randn(*groups, count, others + width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = rows.new_zeros(*groups, others + width, width)
    for piece in rows.split(2, -2):
        add_second_moment(total, piece)
    mirror(total)
    torch.testing.assert_close(total, rows.mT @ rows[..., others:])


def test_of_wide_rows_less_than_the_whole_is_computed() -> None:
    rows, total = torch.ones(2, WIDE), torch.zeros(WIDE, WIDE)
    add_second_moment(total, rows)
    share = (BLOCKS + 1) / (2 * BLOCKS)
    assert float((total > 0).float().mean()) == share
    mirror(total)
    assert torch.equal(total, torch.full_like(total, 2.0))
