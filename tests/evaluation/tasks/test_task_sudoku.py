"""Grids against enumeration, the solver against brute force, the verifier against each change of a cell."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from discrete_distill.evaluation.tasks import Sudoku
from discrete_distill.evaluation.tasks.sudoku_grids import BOX_SHAPES, NUM_GRIDS, grids_of_one_first_row, sample_grids
from discrete_distill.evaluation.tasks.sudoku_grids_9x9 import (
    CAP,
    NUM_CROSSES_OF_ONE_BOX,
    completions,
    sample_crosses,
)
from discrete_distill.evaluation.tasks.sudoku_solver import OPEN, count_solutions, solutions

SIZES = sorted(BOX_SHAPES)
CHI_SQUARE_TAIL = 3.1  # Standard normal deviates: one in a thousand.


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def is_grid(cells: list[int], size: int) -> bool:
    """The definition, group by group."""
    height, width = BOX_SHAPES[size]
    rows = [cells[size * r : size * r + size] for r in range(size)]
    boxes = [
        [rows[r + i][c + j] for i in range(height) for j in range(width)]
        for r in range(0, size, height)
        for c in range(0, size, width)
    ]
    return all(sorted(group) == list(range(size)) for group in [*rows, *zip(*rows, strict=True), *boxes])


def all_grids_4x4() -> list[tuple[int, ...]]:
    """By brute force over pairs of rows: two bands whose columns are complete."""
    rows = itertools.permutations(range(4))
    bands = [(*a, *b) for a, b in itertools.permutations(rows, 2) if set(a[:2]) | set(b[:2]) == set(range(4))]
    return [(*a, *b) for a in bands for b in bands if is_grid([*a, *b], 4)]


GRIDS_4x4 = all_grids_4x4()


def chi_square_deviate(counts: Tensor) -> float:
    """Of uniform counts, as a standard normal deviate (Wilson and Hilferty)."""
    expected = counts.double().mean()
    degrees = len(counts) - 1
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    return ((chi_square / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees))


@pytest.mark.parametrize("size", [4, 6])
def test_grids_of_one_first_row_are_all_grids_over_the_orders_of_that_row(size: int) -> None:
    table = grids_of_one_first_row(size)
    assert len(table) * math.factorial(size) == NUM_GRIDS[size]
    assert len(table.unique(dim=0)) == len(table)
    assert bool(Sudoku(size, mask_token_id=size).is_solution(table).all())
    assert bool((table[:, :size] == torch.arange(size)).all())


def test_there_are_288_grids_of_4x4_and_they_are_drawn_uniformly() -> None:
    assert len(GRIDS_4x4) == NUM_GRIDS[4] == 288
    sampled, counts = sample_grids(4, 20_000, seeded()).unique(dim=0, return_counts=True)
    assert set(map(tuple, sampled.tolist())) == set(GRIDS_4x4)
    assert abs(chi_square_deviate(counts)) < CHI_SQUARE_TAIL


def test_grids_of_6x6_are_drawn_uniformly_from_the_table() -> None:
    grids = sample_grids(6, 60_000, seeded())
    # Undo the relabelling: the symbols of the first row become 0 .. 5.
    position = grids[:, :6].argsort(dim=1)
    table = grids_of_one_first_row(6)
    hashing = torch.randint(2**62, (36,), generator=seeded(1))
    keys = (table * hashing).sum(1)
    assert len(keys.unique()) == len(table)
    found = (position.gather(1, grids) * hashing).sum(1)
    order = keys.argsort()
    row = order[torch.searchsorted(keys[order], found)]
    assert bool((keys[row] == found).all())
    assert abs(chi_square_deviate(torch.bincount(row % 64, minlength=64))) < CHI_SQUARE_TAIL
    assert abs(chi_square_deviate(torch.bincount(row // 612, minlength=64))) < CHI_SQUARE_TAIL
    first_rows = (grids[:, :6] * 6 ** torch.arange(6)).sum(1).unique(return_counts=True)[1]
    assert len(first_rows) == 720
    assert abs(chi_square_deviate(first_rows)) < CHI_SQUARE_TAIL


def test_completions_of_crosses_estimate_the_number_of_9x9_grids() -> None:
    numbers = torch.tensor([len(completions(cross)[0]) for cross in sample_crosses(50, seeded())]).double()
    assert bool((numbers <= CAP).all())
    num_crosses = NUM_CROSSES_OF_ONE_BOX * math.factorial(9)
    error = float(numbers.std()) / math.sqrt(len(numbers)) * num_crosses
    assert abs(float(numbers.mean()) * num_crosses - NUM_GRIDS[9]) < 5 * error
    assert error < 0.03 * NUM_GRIDS[9]


def test_boxes_that_are_cyclic_shifts_have_the_most_completions_known() -> None:
    index = torch.arange(9)
    cross = torch.full((9, 9), -1)
    cross[:3] = (3 * index[:3, None] + index) % 9
    cross[:, :3] = 3 * (index[:, None] % 3) + (index[:, None] // 3 + index[:3]) % 3
    assert len(completions(cross)[0]) == CAP


def test_completions_of_a_cross_are_those_that_the_solver_finds() -> None:
    cross = sample_crosses(1, seeded(3))[0]
    middle, bottom = completions(cross)
    # One row more is given, so that the solver has few solutions to list.
    given = cross.clone()
    given[3, 3:] = middle[0, 0]
    matching = [
        [*cross[:3].flatten().tolist(), *torch.cat([cross[3:, :3], torch.cat([m, b])], dim=1).flatten().tolist()]
        for m, b in zip(middle, bottom, strict=True)
        if bool((m[0] == middle[0, 0]).all())
    ]
    assert sorted(matching) == sorted(solutions(given.flatten().tolist(), 9))
    assert len(torch.cat([middle, bottom], dim=1).unique(dim=0)) == len(middle)


@settings(max_examples=16, deadline=None)
@given(
    size=st.sampled_from(SIZES),
    n=st.integers(0, 3),
    clues=st.floats(0, 1),
    unique=st.booleans(),
    mask=st.integers(0, 50),
    seed=st.integers(0, 2**31),
)
def test_every_sampled_solution_verifies(size: int, n: int, clues: float, unique: bool, mask: int, seed: int) -> None:
    unique = unique and size < 9
    task = Sudoku(size, num_clues=int(clues * size**2), unique=unique, mask_token_id=size + mask)
    examples = task.sample_solutions(n, seeded(seed))
    assert examples.sequences.shape == (n, size**2)
    if n == 0:
        return
    prompts = examples.prompts(task.mask_token_id)
    assert bool(task.verify(examples.sequences, prompts).all())
    assert all(is_grid(cells, size) for cells in examples.sequences.tolist())
    assert not bool(task.verify(prompts.x_init, prompts)[prompts.generation_mask.any(1)].any())
    clue_counts = (~examples.generation_mask).sum(1)
    assert bool((clue_counts >= task.num_clues if unique else clue_counts == task.num_clues).all())
    if unique:
        assert task.count_solutions(prompts, limit=2).tolist() == [1] * n
    moved = task.augment(examples, seeded(seed + 1))
    assert bool(task.verify(moved.sequences, moved.prompts(task.mask_token_id)).all())
    assert bool((moved.generation_mask.sum(1) == examples.generation_mask.sum(1)).all())


@pytest.mark.parametrize("size", SIZES)
def test_each_change_of_one_cell_is_rejected(size: int) -> None:
    task = Sudoku(size, mask_token_id=size)
    grid = task.sample_solutions(1, seeded()).sequences
    changed = []
    for cell in range(task.length):
        for token in (*range(-1, size), size, size + 7):
            if token != grid[0, cell]:
                changed.append(grid.clone())
                changed[-1][0, cell] = token
    sequences = torch.cat(changed)
    prompts = task.sample_prompts(1, seeded())
    shared = type(prompts)(*(part.expand(len(sequences), -1) for part in prompts))
    assert not bool(task.verify(sequences, shared).any())


def test_a_valid_grid_that_changes_a_clue_is_rejected() -> None:
    task = Sudoku(4, num_clues=5, mask_token_id=4)
    prompts = task.sample_prompts(1, seeded())
    every = torch.tensor(GRIDS_4x4)
    shared = type(prompts)(*(part.expand(288, -1) for part in prompts))
    accepted = task.verify(every, shared)
    assert 1 <= int(accepted.sum()) < 288
    assert torch.equal(accepted, ((every == prompts.x_init) | prompts.generation_mask).all(1))
    assert task.count_solutions(prompts, limit=288).tolist() == [int(accepted.sum())]


@settings(max_examples=50, deadline=None)
@given(cells=st.lists(st.sampled_from([OPEN] * 6 + [0, 1, 2, 3]), min_size=16, max_size=16))
def test_the_solver_finds_what_brute_force_finds(cells: list[int]) -> None:
    expected = [grid for grid in GRIDS_4x4 if all(c in (OPEN, g) for c, g in zip(cells, grid, strict=True))]
    assert sorted(map(tuple, solutions(cells, 4))) == expected
    assert count_solutions(cells, 4, limit=3) == min(3, len(expected))


def test_a_minimal_puzzle_needs_each_clue() -> None:
    task = Sudoku(6, unique=True, mask_token_id=6)
    prompts = task.sample_prompts(2, seeded())
    cells = prompts.x_init.masked_fill(prompts.generation_mask, OPEN)
    for puzzle in cells.tolist():
        for clue in [cell for cell, symbol in enumerate(puzzle) if symbol != OPEN]:
            opened = [*puzzle[:clue], OPEN, *puzzle[clue + 1 :]]
            assert count_solutions(opened, 6, limit=2) == 2


def test_symmetries_reach_every_kind_of_change_and_move_masks_along() -> None:
    task = Sudoku(4, num_clues=8, mask_token_id=4)
    one = task.sample_solutions(1, seeded())
    many = type(one)(*(part.expand(4000, -1) for part in one))
    moved = task.augment(many, seeded())
    # All grids of 4x4 are in two orbits, of 96 and 192 grids.
    assert len(moved.sequences.unique(dim=0)) in (96, 192)
    counts = moved.sequences.unique(dim=0, return_counts=True)[1]
    assert abs(chi_square_deviate(counts)) < CHI_SQUARE_TAIL
    masked = one.prompts(4)
    puzzles = task.augment(type(one)(masked.x_init, masked.generation_mask), seeded(2))
    assert torch.equal(puzzles.sequences == 4, puzzles.generation_mask)


def test_puzzles_are_read_and_written() -> None:
    task = Sudoku(4, mask_token_id=9)
    prompts = task.puzzles(["1..4 ..1. .1.. 4..1", "1004001001004001"])
    assert torch.equal(prompts.x_init[0], prompts.x_init[1])
    assert task.render(prompts.x_init[0]) == "1_ _4\n__ 1_\n\n_1 __\n4_ _1"
    assert torch.equal(task.parse([task.render(row) for row in prompts.x_init]), prompts.x_init)
    assert prompts.generation_mask.sum(1).tolist() == [10, 10]


@pytest.mark.parametrize(
    ("puzzle", "said"),
    [
        ("11__ ____ ____ ____", "row 1, column 1 and in row 1, column 2"),
        ("1___ ____ ____ 1___", "row 1, column 1 and in row 4, column 1"),
        ("1___ _1__ ____ ____", "row 1, column 1 and in row 2, column 2"),
        ("123_ ___4 ____ ____", "no solution"),
        ("12__", "16 of the characters"),
        ("5___ ____ ____ ____", "'5'"),
    ],
)
def test_puzzles_that_contradict_themselves_are_refused(puzzle: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sudoku(4, mask_token_id=4).puzzles([puzzle])


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"size": 5}, ValueError),
        ({"size": 4.0}, TypeError),
        ({"num_clues": 17}, ValueError),
        ({"num_clues": -1}, ValueError),
        ({"unique": 1}, TypeError),
        ({"mask_token_id": 3}, ValueError),
        ({"mask_token_id": None}, TypeError),
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        Sudoku(**{"size": 4, "mask_token_id": 4, **wrong})
