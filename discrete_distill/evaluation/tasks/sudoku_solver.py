"""Solve Sudoku puzzles by depth-first search with bit sets, the cell of fewest candidates first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice

from .sudoku_grids import BOX_SHAPES

OPEN = -1
"""A cell without a symbol."""


def solutions(cells: Sequence[int], size: int) -> Iterator[list[int]]:
    """Find all completions of a puzzle, one at a time.

    Args:
        cells: ``size * size`` symbols ``0 .. size - 1`` row by row, `OPEN` where there is none.
        size: 4, 6 or 9.

    Yields:
        The completed cells; nothing if the puzzle contradicts itself.
    """
    groups_of = _groups_of_cells(size)
    used = [0] * (3 * size)  # Symbols of each row, column and box, as bits.
    for cell, symbol in enumerate(cells):
        if symbol != OPEN:
            bit = 1 << symbol
            if any(used[group] & bit for group in groups_of[cell]):
                return
            for group in groups_of[cell]:
                used[group] |= bit
    grid = list(cells)
    yield from _search(grid, [cell for cell, symbol in enumerate(cells) if symbol == OPEN], used, groups_of, size)


def count_solutions(cells: Sequence[int], size: int, limit: int) -> int:
    """Number of completions of a puzzle, at most ``limit``; arguments as in `solutions`."""
    return sum(1 for _ in islice(solutions(cells, size), limit))


def first_conflict(cells: Sequence[int], size: int) -> tuple[int, int] | None:
    """Two cells with one symbol in one row, column or box; None if there are none. Arguments as in `solutions`."""
    groups_of = _groups_of_cells(size)
    seen: dict[tuple[int, int], int] = {}
    for cell, symbol in enumerate(cells):
        for group in groups_of[cell]:
            if symbol != OPEN and (group, symbol) in seen:
                return seen[group, symbol], cell
            seen[group, symbol] = cell
    return None


def _search(
    grid: list[int], open_cells: list[int], used: list[int], groups_of: list[tuple[int, int, int]], size: int
) -> Iterator[list[int]]:
    if not open_cells:
        yield list(grid)
        return
    everything = (1 << size) - 1
    fewest, place, candidates = size + 1, 0, 0
    for index, cell in enumerate(open_cells):
        row, column, box = groups_of[cell]
        free = everything & ~(used[row] | used[column] | used[box])
        count = free.bit_count()
        if count < fewest:
            fewest, place, candidates = count, index, free
            if count < 2:
                break
    cell = open_cells[place]
    rest = open_cells[:place] + open_cells[place + 1 :]
    groups = groups_of[cell]
    while candidates:
        bit = candidates & -candidates
        candidates ^= bit
        grid[cell] = bit.bit_length() - 1
        for group in groups:
            used[group] |= bit
        yield from _search(grid, rest, used, groups_of, size)
        for group in groups:
            used[group] ^= bit


@lru_cache
def _groups_of_cells(size: int) -> list[tuple[int, int, int]]:
    """Numbers of the row, the column and the box of each cell."""
    height, width = BOX_SHAPES[size]
    return [
        (row, size + column, 2 * size + row // height * height + column // width)
        for row in range(size)
        for column in range(size)
    ]
