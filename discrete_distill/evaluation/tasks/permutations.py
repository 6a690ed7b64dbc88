"""Permutations: every symbol once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from string import ascii_letters

import torch
from torch import Generator, Tensor

from ...checks import check_count
from .symbol_task import SymbolTask
from .task import Examples, all_generated


@dataclass(frozen=True)
class Permutations(SymbolTask):
    """Write each of ``size`` letters once, in any order; all ``size!`` orders are equally likely.

    Args:
        size: number of letters, 2 to 52, and length of a sequence.
        mask_token_id: id of the mask, ``size`` or more.

    Raises:
        TypeError: if an argument is no integer.
        ValueError: if it is out of range.

    Examples:
        >>> Permutations(4, mask_token_id=4).num_solutions
        24
    """

    size: int

    def __post_init__(self) -> None:
        if check_count("size", self.size, minimum=2) > len(ascii_letters):
            raise ValueError(f"size must be {len(ascii_letters)} or less, got {self.size}")
        super().__post_init__()

    @property
    def symbols(self) -> str:
        return ascii_letters[: self.size]

    @property
    def length(self) -> int:
        return self.size

    @property
    def num_solutions(self) -> int:
        return math.factorial(self.size)

    def sample_solutions(self, n: int, generator: Generator | None = None) -> Examples:
        check_count("n", n, minimum=0)
        sequences = torch.rand(n, self.size, generator=generator, dtype=torch.float64).argsort(dim=1)
        return Examples(sequences, all_generated(sequences))

    def is_solution(self, sequences: Tensor) -> Tensor:
        return (sequences.sort(dim=1).values == torch.arange(self.size, device=sequences.device)).all(1)
