"""Arithmetic with numbers of several digits: an easy control with one right answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from ...checks import check_choice, check_count
from .digits import digits_of, number_of
from .symbol_task import SymbolTask
from .task import Examples

Operation = Literal["+", "*"]
MAX_DIGITS = 9


@dataclass(frozen=True)
class Arithmetic(SymbolTask):
    """Add or multiply two numbers: ``0123+0456=00579``.

    Numbers are written with leading zeros, so that all sequences are of one length; each number is uniform over all
    numbers of so many digits.

    Args:
        num_digits: digits of each number, 1 to 9.
        operation: "+", whose answer has ``num_digits + 1`` digits, or "*", with ``2 * num_digits``.
        mask_token_id: id of the mask, 12 or more.

    Raises:
        TypeError: if a number is no integer.
        ValueError: if it is out of range, or the operation is another.

    Examples:
        >>> task = Arithmetic(4, mask_token_id=12)
        >>> prompts = task.sample_prompts(64, generator)
        >>> prompts.x_init.shape, task.render(task.parse(["0123+0456=_____"])[0])
        (torch.Size([64, 15]), '0123+0456=_____')
        >>> task.is_solution(task.parse(["0123+0456=00579", "0123+0456=00580"]))
        tensor([ True, False])
    """

    num_digits: int
    operation: Operation = "+"

    def __post_init__(self) -> None:
        if check_count("num_digits", self.num_digits) > MAX_DIGITS:
            raise ValueError(f"num_digits must be {MAX_DIGITS} or less, got {self.num_digits}")
        check_choice("operation", self.operation, get_args(Operation))
        super().__post_init__()

    @property
    def symbols(self) -> str:
        return f"0123456789{self.operation}="

    @property
    def length(self) -> int:
        return self._prompt_length + (self.num_digits + 1 if self.operation == "+" else 2 * self.num_digits)

    @property
    def _prompt_length(self) -> int:
        return 2 * self.num_digits + 2

    def sample_solutions(self, n: int, generator: Generator | None = None) -> Examples:
        check_count("n", n, minimum=0)
        numbers_B2 = torch.randint(10**self.num_digits, (n, 2), generator=generator)
        sequences = self._write(numbers_B2[:, 0], numbers_B2[:, 1])
        generation_mask = torch.zeros_like(sequences, dtype=torch.bool)
        generation_mask[:, self._prompt_length :] = True
        return Examples(sequences, generation_mask)

    def is_solution(self, sequences: Tensor) -> Tensor:
        first, second = sequences[:, : self.num_digits], sequences[:, self.num_digits + 1 : self._prompt_length - 1]
        digits_alone = (first < 10).all(1) & (second < 10).all(1)
        return digits_alone & (sequences == self._write(number_of(first), number_of(second))).all(1)

    def _write(self, first_B: Tensor, second_B: Tensor) -> Tensor:
        """The sequences of two numbers each, with the right answer."""
        answer_B = first_B + second_B if self.operation == "+" else first_B * second_B
        sign_B1 = torch.full_like(first_B, 10)[:, None]
        operands = (digits_of(first_B, self.num_digits), sign_B1, digits_of(second_B, self.num_digits), sign_B1 + 1)
        return torch.cat([*operands, digits_of(answer_B, self.length - self._prompt_length)], dim=1)
