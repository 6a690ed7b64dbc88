"""Corruption: what is refused, and what rows of a group share."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

from discrete_distill.process import MaskedDiffusion

MASK = 2
X = torch.tensor([0, 1, 1])


@pytest.mark.parametrize("mask", [1.5, 1.0, True, "1", None])
def test_a_mask_id_that_is_no_integer_is_refused(mask) -> None:
    with pytest.raises(TypeError, match=repr(mask)):
        MaskedDiffusion(mask)


TWO_ROWS, HALF = X.repeat(2, 1), torch.full((2,), 0.5)


@pytest.mark.parametrize(
    ("error", "x", "t", "generation_mask"),
    [
        (ValueError, TWO_ROWS, torch.tensor([0.5, float("nan")]), None),
        (ValueError, TWO_ROWS, torch.tensor([0.5, 1.1]), None),
        (ValueError, TWO_ROWS, torch.tensor([0.5, -0.1]), None),
        (ValueError, TWO_ROWS, torch.full((2, 3), 0.5), None),
        (ValueError, TWO_ROWS, torch.tensor(0.5), None),
        (ValueError, X, HALF, None),
        (ValueError, TWO_ROWS, HALF, torch.ones(2, 2, dtype=torch.bool)),
        (TypeError, TWO_ROWS.float(), HALF, None),
        (TypeError, TWO_ROWS, torch.tensor([0, 1]), None),
        (TypeError, TWO_ROWS, HALF, torch.ones(2, 3)),
    ],
)
def test_what_cannot_be_corrupted_is_refused(error, x, t, generation_mask) -> None:
    with pytest.raises(error):
        MaskedDiffusion(MASK).corrupt(x, t, generation_mask=generation_mask)


@pytest.mark.parametrize("count", [[1, -1], [4, 0], [1, 3]])
def test_a_count_outside_of_its_row_is_refused(count) -> None:
    generation_mask = torch.tensor([[True, True, True], [True, True, False]])
    with pytest.raises(ValueError, match=str(next(c for c in count if c not in (0, 1)))):
        MaskedDiffusion(MASK).corrupt_by_count(TWO_ROWS, torch.tensor(count), generation_mask=generation_mask)
    with pytest.raises(TypeError, match="float"):
        MaskedDiffusion(MASK).corrupt_by_count(TWO_ROWS, torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="0"):
        MaskedDiffusion(MASK).draw_parts(TWO_ROWS, 0)


@given(st.integers(0, 2**20), st.integers(1, 4))
def test_rows_of_a_group_share_their_order_and_keep_what_is_given(seed, group_size) -> None:
    """Given positions stay and counts are obeyed, whatever is generated; where it is the same, so are masks and
    parts."""
    generator, process = Generator().manual_seed(seed), MaskedDiffusion(MASK)
    x = torch.randint(2, (2 * group_size, 6), generator=generator)
    generation_mask = torch.rand(x.shape, generator=generator) < 0.7
    count = (torch.rand(len(x), generator=generator) * (generation_mask.sum(1) + 1)).long()
    x_t = process.corrupt_by_count(
        x, count, generation_mask=generation_mask, generator=generator, group_size=group_size
    )
    assert torch.equal((x_t == MASK).sum(1), count)
    assert torch.equal(x_t[~generation_mask], x[~generation_mask])
    same = generation_mask[:1].expand(len(x), -1)
    most = same.sum(1) // 2
    alike = process.corrupt_by_count(x, most, generation_mask=same, generator=generator, group_size=group_size) == MASK
    assert torch.equal(alike, alike[::group_size].repeat_interleave(group_size, dim=0))
    parts = process.draw_parts(x, 3, generation_mask=same, generator=generator, group_size=group_size)
    assert torch.equal(parts, parts[::group_size].repeat_interleave(group_size, dim=0))
