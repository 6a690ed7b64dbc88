"""Uniform samples of completed Sudoku grids.

The number of grids is 288 for boxes of 2x2, 28 200 960 for 2x3 and 6 670 903 752 021 072 936 960 for 3x3 (Felgenhauer
and Jarvis, "Mathematics of Sudoku I", 2006). Relabelling the symbols acts freely on them, so that a uniform grid is a
uniform grid of one fixed first row (or first box), relabelled by a uniform permutation. For 2x2 and 2x3 the grids of
one first row are enumerated: 12 and 39 168. The 3x3 grids are in `sudoku_grids_9x9`.

Symbols are ``0 .. n - 1``; a grid is ``n * n`` cells, row by row. Shape suffixes: B grids, C cells, G grids of one
first row, R permutations of the symbols.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations

import torch
from torch import Generator, Tensor

from .sudoku_grids_9x9 import sample_grids_9x9

BOX_SHAPES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Height and width of a box, in cells, by size of the grid."""

NUM_GRIDS = {4: 288, 6: 28_200_960, 9: 6_670_903_752_021_072_936_960}
"""Number of different completed grids, by size."""


def sample_grids(size: int, n: int, generator: Generator | None = None) -> Tensor:
    """Draw completed grids: exactly uniform for sizes 4 and 6, nearly so for 9 (see `sample_grids_9x9`).

    Returns:
        int64 ``[n, size * size]``, symbols ``0 .. size - 1``.
    """
    if size == 9:
        return sample_grids_9x9(n, generator)
    table_GC = grids_of_one_first_row(size)
    chosen = table_GC[torch.randint(len(table_GC), (n,), generator=generator)]
    return relabel(chosen, random_permutations(n, size, generator))


@lru_cache
def grids_of_one_first_row(size: int) -> Tensor:
    """Enumerate the grids whose first row is ``0 .. size - 1``.

    A grid is built row by row from permutations; two rows of a grid differ in every column, and two rows of one band
    have different symbols in every box.

    Returns:
        int64 ``[G, size * size]``.
    """
    height, width = BOX_SHAPES[size]
    rows_Rn = torch.tensor(list(permutations(range(size))))
    boxes_Rb = (1 << rows_Rn).unflatten(1, (-1, width)).sum(2)  # The set of symbols of each box, as bits.
    apart_RR = (rows_Rn[:, None] != rows_Rn).all(2)
    disjoint_RR = apart_RR & ((boxes_Rb[:, None] & boxes_Rb) == 0).all(2)
    grids_Gr = torch.zeros(1, 1, dtype=torch.long)
    for row in range(1, size):
        allowed_GR = torch.ones(len(grids_Gr), len(rows_Rn), dtype=torch.bool)
        for above in range(row):
            compatible_RR = disjoint_RR if above // height == row // height else apart_RR
            allowed_GR &= compatible_RR[grids_Gr[:, above]]
        parent, chosen = allowed_GR.nonzero(as_tuple=True)
        grids_Gr = torch.cat([grids_Gr[parent], chosen[:, None]], dim=1)
    return rows_Rn[grids_Gr].flatten(1)


def random_permutations(n: int, size: int, generator: Generator | None) -> Tensor:
    """Draw uniform permutations of ``0 .. size - 1``, int64 ``[n, size]``."""
    return torch.rand(n, size, generator=generator, dtype=torch.float64).argsort(dim=1)


def relabel(grids_BC: Tensor, symbols_Bn: Tensor) -> Tensor:
    """Replace symbol ``v`` of grid ``b`` by ``symbols_Bn[b, v]``; other ids, such as masks, stay.

    Args:
        grids_BC: int64 ``[B, C]``.
        symbols_Bn: permutations, int64 ``[B, n]``.
    """
    size = symbols_Bn.shape[1]
    is_symbol = (grids_BC >= 0) & (grids_BC < size)
    return torch.where(is_symbol, symbols_Bn.gather(1, grids_BC.clamp(0, size - 1)), grids_BC)


def random_cell_order(size: int, n: int, generator: Generator | None = None) -> Tensor:
    """Draw symmetries of the cells: cell ``c`` of the new grid is cell ``order[c]`` of the old one.

    Bands, rows within a band, stacks and columns within a stack are permuted; grids of square boxes are transposed
    with probability 1/2. The draw is uniform over this group.

    Returns:
        int64 ``[n, size * size]``.
    """
    height, width = BOX_SHAPES[size]
    rows_Bn = _blocked_permutations(n, size // height, height, generator)
    columns_Bn = _blocked_permutations(n, size // width, width, generator)
    order_Bnn = rows_Bn[:, :, None] * size + columns_Bn[:, None, :]
    if height == width:
        transposed_B = torch.rand(n, generator=generator) < 0.5
        order_Bnn = torch.where(transposed_B[:, None, None], order_Bnn.transpose(1, 2), order_Bnn)
    return order_Bnn.flatten(1)


def _blocked_permutations(n: int, num_blocks: int, block: int, generator: Generator | None) -> Tensor:
    """Permutations of lines that keep blocks of consecutive lines together, int64 ``[n, num_blocks * block]``."""
    outer_Bk = random_permutations(n, num_blocks, generator)
    inner_Bkj = random_permutations(n * num_blocks, block, generator).view(n, num_blocks, block)
    return (outer_Bk[:, :, None] * block + inner_Bkj).flatten(1)
