"""Sudoku: fill a grid so that every row, column and box has every symbol once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ...checks import check_count, check_flag
from .sudoku_grids import BOX_SHAPES, NUM_GRIDS, random_cell_order, random_permutations, relabel, sample_grids
from .sudoku_solver import OPEN, count_solutions, first_conflict
from .symbol_task import MASK_CHARACTER, SymbolTask
from .task import Examples, Prompts


@dataclass(frozen=True)
class Sudoku(SymbolTask):
    """Complete a grid of 4x4, 6x6 (boxes of two rows by three columns) or 9x9 cells; symbol "1" has the id 0.

    Grids are uniform over all valid ones: exactly for sizes 4 and 6, nearly so for size 9 (`sudoku_grids_9x9`). Cells
    of such a grid are opened in a uniformly random order; what is left are the clues.

    Args:
        size: 4, 6 or 9.
        num_clues: cells that are given, in a random place; 0 accepts any valid grid.
        unique: open a cell only if one solution is left, so that ``num_clues`` is the minimum number of clues; with 0,
            no clue can be spared.
        mask_token_id: id of the mask, ``size`` or more.

    Raises:
        TypeError: if a number is no integer, or ``unique`` no bool.
        ValueError: if the size is another, or there are more clues than cells.

    Examples:
        >>> task = Sudoku(4, num_clues=12, mask_token_id=8)
        >>> prompts = task.sample_prompts(8, generator)
        >>> sampler = AncestralSampler(process, num_steps=4)
        >>> out = sampler(teacher, x_init=prompts.x_init, generation_mask=prompts.generation_mask, generator=generator)
        >>> task.verify(out.sequences, prompts).float().mean()  # The network is untrained.
        tensor(0.)
    """

    size: int = 9
    num_clues: int = 0
    unique: bool = False

    def __post_init__(self) -> None:
        if check_count("size", self.size) not in BOX_SHAPES:
            raise ValueError(f"size is one of {', '.join(map(str, BOX_SHAPES))}, got {self.size}")
        if check_count("num_clues", self.num_clues, minimum=0) > self.length:
            raise ValueError(f"num_clues must be {self.length} or less, the cells of the grid, got {self.num_clues}")
        check_flag("unique", self.unique)
        super().__post_init__()

    @property
    def symbols(self) -> str:
        return "123456789"[: self.size]

    @property
    def length(self) -> int:
        return self.size**2

    @property
    def num_solutions(self) -> int | None:
        return NUM_GRIDS[self.size] if self.num_clues == 0 and not self.unique else None

    def sample_solutions(self, n: int, generator: Generator | None = None) -> Examples:
        """Draw ``n`` grids and their clues.

        Args:
            n: number of grids; a minimal 9x9 puzzle takes about 50 ms of one core.
            generator: source of randomness, on the CPU.
        """
        check_count("n", n, minimum=0)
        grids = sample_grids(self.size, n, generator)
        order_BC = random_permutations(n, self.length, generator)
        if self.unique:
            rows = zip(grids.tolist(), order_BC.tolist(), strict=True)
            open_cells = [self._cells_opened(cells, order) for cells, order in rows]
            return Examples(grids, torch.tensor(open_cells, dtype=torch.bool).view(-1, self.length))
        return Examples(grids, order_BC >= self.num_clues)

    def _cells_opened(self, solution: list[int], order: list[int]) -> list[bool]:
        """Open cells in an order while the solution stays the only one and clues are left."""
        cells = list(solution)
        clues = self.length
        for cell in order:
            if clues == self.num_clues:
                break
            cells[cell] = OPEN
            if count_solutions(cells, self.size, limit=2) > 1:
                cells[cell] = solution[cell]
            else:
                clues -= 1
        return [symbol == OPEN for symbol in cells]

    def is_solution(self, sequences: Tensor) -> Tensor:
        height, width = BOX_SHAPES[self.size]
        grid_Brc = sequences.unflatten(1, (self.size, self.size))
        boxes_Bbc = (
            grid_Brc.unflatten(2, (-1, width)).unflatten(1, (-1, height)).transpose(2, 3).flatten(3).flatten(1, 2)
        )
        groups_BGn = torch.cat([grid_Brc, grid_Brc.transpose(1, 2), boxes_Bbc], dim=1)
        return (groups_BGn.sort(dim=2).values == torch.arange(self.size, device=sequences.device)).all((1, 2))

    def augment(self, examples: Examples, generator: Generator | None = None) -> Examples:
        """Apply a random symmetry of Sudoku to each example.

        Symbols are relabelled; bands, rows within a band, stacks and columns within a stack are permuted; grids of
        square boxes are transposed or not.

        Args:
            examples: grids, complete or with masks.
            generator: source of randomness, on the CPU.
        """
        n = len(examples.sequences)
        order_BC = random_cell_order(self.size, n, generator)
        sequences = relabel(examples.sequences, random_permutations(n, self.size, generator))
        return Examples(sequences.gather(1, order_BC), examples.generation_mask.gather(1, order_BC))

    def puzzles(self, texts: Sequence[str]) -> Prompts:
        """Read puzzles, such as ``"1__4 __1_ _1__ 4__1"``; "_", "." and "0" are open cells.

        Args:
            texts: one puzzle each, row by row; white space is skipped.

        Raises:
            ValueError: if a puzzle has another number of cells or other characters, contradicts itself (the cells are
                named), or has no solution.
        """
        x_init = self.parse([text.replace(".", MASK_CHARACTER).replace("0", MASK_CHARACTER) for text in texts])
        is_open = x_init == self.mask_token_id
        for text, cells in zip(texts, x_init.masked_fill(is_open, OPEN).tolist(), strict=True):
            conflict = first_conflict(cells, self.size)
            if conflict is not None:
                (first_row, first_column), (row, column) = (divmod(cell, self.size) for cell in conflict)
                raise ValueError(
                    f"puzzle {text!r} contradicts itself: {self.symbols[cells[conflict[0]]]} stands in row "
                    f"{first_row + 1}, column {first_column + 1} and in row {row + 1}, column {column + 1}; change one"
                )
            if count_solutions(cells, self.size, limit=1) == 0:
                raise ValueError(f"puzzle {text!r} has no solution; take a clue away")
        return Prompts(x_init, is_open)

    def count_solutions(self, prompts: Prompts, *, limit: int) -> Tensor:
        """Count the solutions of each puzzle by search.

        Args:
            prompts: puzzles.
            limit: at which counting stops; an open 6x6 grid has 28 million.

        Returns:
            int64 ``[B]``, at most ``limit``.
        """
        check_count("limit", limit)
        cells_BC = prompts.x_init.masked_fill(prompts.generation_mask, OPEN)
        return torch.tensor([count_solutions(cells, self.size, limit) for cells in cells_BC.tolist()])

    def render(self, sequence: Tensor) -> str:
        """Write a grid ``[L]`` in rows and boxes; "_" is the mask, "?" any other id that is no symbol."""
        height, width = BOX_SHAPES[self.size]
        characters = super().render(sequence)
        lines = []
        for start in range(0, len(characters), self.size):
            row = characters[start : start + self.size]
            lines.append(" ".join(row[column : column + width] for column in range(0, self.size, width)))
        bands = ["\n".join(lines[start : start + height]) for start in range(0, len(lines), height)]
        return "\n\n".join(bands)
