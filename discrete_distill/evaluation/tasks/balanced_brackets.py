"""Balanced brackets: Dyck words, of one kind of bracket or several."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ...checks import check_count
from .symbol_task import SymbolTask
from .task import Examples, all_generated

BRACKETS = "()[]{}<>"


@dataclass(frozen=True)
class BalancedBrackets(SymbolTask):
    """Write ``num_pairs`` pairs of brackets that are balanced and properly nested; all such words are equally likely.

    There are ``C(2 n, n) / (n + 1)`` words of ``n`` pairs of one kind (the Catalan number), and ``k^n`` times as many
    of ``k`` kinds. Opening brackets have even ids; the closing bracket of the same kind has the next id.

    Args:
        num_pairs: pairs, half the length of a sequence.
        num_kinds: kinds of brackets, 1 to 4.
        mask_token_id: id of the mask, ``2 * num_kinds`` or more.

    Raises:
        TypeError: if an argument is no integer.
        ValueError: if it is out of range.

    Examples:
        >>> BalancedBrackets(5, mask_token_id=2).num_solutions
        42
    """

    num_pairs: int
    num_kinds: int = 1

    def __post_init__(self) -> None:
        check_count("num_pairs", self.num_pairs)
        if check_count("num_kinds", self.num_kinds) > len(BRACKETS) // 2:
            raise ValueError(f"num_kinds must be {len(BRACKETS) // 2} or less, got {self.num_kinds}")
        super().__post_init__()

    @property
    def symbols(self) -> str:
        return BRACKETS[: 2 * self.num_kinds]

    @property
    def length(self) -> int:
        return 2 * self.num_pairs

    @property
    def num_solutions(self) -> int:
        words = math.comb(2 * self.num_pairs, self.num_pairs) // (self.num_pairs + 1)
        return words * self.num_kinds**self.num_pairs

    def sample_solutions(self, n: int, generator: Generator | None = None) -> Examples:
        """Draw ``n`` words uniformly: with ``r`` characters to come at depth ``h``, a bracket opens with probability
        ``(h + 2) (r - h) / (2 r (h + 1))``, the ratio of the numbers of words that continue either way.

        Args:
            n: number of words.
            generator: source of randomness, on the CPU.
        """
        check_count("n", n, minimum=0)
        draws_BL = torch.rand(n, self.length, generator=generator, dtype=torch.float64)
        kinds_BL = torch.randint(self.num_kinds, (n, self.length), generator=generator)
        depth_B = torch.zeros(n, dtype=torch.long)
        open_kinds_BL = torch.zeros(n, self.length, dtype=torch.long)  # Kinds of the brackets that are open, by depth.
        sequences = torch.empty(n, self.length, dtype=torch.long)
        for position in range(self.length):
            left = self.length - position
            probability_B = (depth_B + 2) * (left - depth_B) / (2.0 * left * (depth_B + 1))
            opens_B = draws_BL[:, position] < probability_B
            open_kinds_BL.scatter_(
                1, depth_B[:, None], torch.where(opens_B, kinds_BL[:, position], _at(open_kinds_BL, depth_B))[:, None]
            )
            kind_B = torch.where(opens_B, kinds_BL[:, position], _at(open_kinds_BL, depth_B - 1))
            sequences[:, position] = 2 * kind_B + (~opens_B).long()
            depth_B = torch.where(opens_B, depth_B + 1, depth_B - 1)
        return Examples(sequences, all_generated(sequences))

    def is_solution(self, sequences: Tensor) -> Tensor:
        batch, length = sequences.shape
        right_B = torch.ones(batch, dtype=torch.bool, device=sequences.device)
        depth_B = torch.zeros(batch, dtype=torch.long, device=sequences.device)
        open_kinds_BL = torch.zeros(batch, length + 1, dtype=torch.long, device=sequences.device)
        for symbol_B in sequences.T:
            opens_B, kind_B = symbol_B % 2 == 0, symbol_B // 2
            matches_B = (depth_B > 0) & (_at(open_kinds_BL, depth_B - 1) == kind_B)
            right_B &= opens_B | matches_B
            written_B = torch.where(opens_B, kind_B, _at(open_kinds_BL, depth_B))
            open_kinds_BL.scatter_(1, depth_B[:, None], written_B[:, None])
            depth_B = torch.where(opens_B, depth_B + 1, (depth_B - 1).clamp(min=0))
        return right_B & (depth_B == 0)


def _at(values_BL: Tensor, index_B: Tensor) -> Tensor:
    """``values_BL[b, index_B[b]]``; the first where the index is negative, the last where it is too large."""
    return values_BL.gather(1, index_B.clamp(0, values_BL.shape[1] - 1)[:, None]).squeeze(1)
