"""Countdown: reach a target from given numbers, in steps of exact integer arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ...checks import check_count
from .digits import digits_of, number_of
from .symbol_task import SymbolTask
from .task import Examples

OPERATORS = "+-*/"
SYMBOLS = f"0123456789{OPERATORS}=,>:"
DIGIT, OPERATOR = -1, -2
MAX_DIGITS = 9


@dataclass(frozen=True)
class Countdown(SymbolTask):
    """Combine all given numbers, each once, to the target: ``25,10,04>54:25+10=35,...`` (after arXiv 2404.03683).

    The answer is ``num_numbers - 1`` steps ``a op b = c``. A step takes two of the numbers at hand away and adds its
    result; the last result is the target. All numbers are integers of ``num_digits`` digits with leading zeros, so that
    all sequences are of one length: a division leaves no remainder, and no result is negative or longer. Many
    answers are right, and all of them are accepted.

    Examples are made forwards: numbers uniform over ``1 .. 10^num_digits - 1``, then steps of two random numbers at
    hand, the larger one first, with an operator that is uniform among those with a positive result; the last result
    becomes the target.

    Args:
        num_numbers: given numbers, 2 or more.
        num_digits: digits of every number, 1 to 9.
        mask_token_id: id of the mask, 18 or more.

    Raises:
        TypeError: if an argument is no integer.
        ValueError: if it is out of range.

    Examples:
        >>> task = Countdown(num_numbers=3, num_digits=2, mask_token_id=18)
        >>> task.is_solution(task.parse(["25,10,04>39:25+10=35,35+04=39", "25,10,04>39:25+10=35,35+04=38"]))
        tensor([ True, False])
    """

    num_numbers: int = 4
    num_digits: int = 2

    def __post_init__(self) -> None:
        check_count("num_numbers", self.num_numbers, minimum=2)
        if check_count("num_digits", self.num_digits) > MAX_DIGITS:
            raise ValueError(f"num_digits must be {MAX_DIGITS} or less, got {self.num_digits}")
        super().__post_init__()

    @property
    def symbols(self) -> str:
        return SYMBOLS

    @property
    def length(self) -> int:
        return len(self._template)

    @property
    def _template(self) -> list[int]:
        """What stands at each position: the id of a symbol, or a digit, or an operator."""
        number = [DIGIT] * self.num_digits
        comma, arrow, colon, equals = (SYMBOLS.index(symbol) for symbol in ",>:=")
        numbers = [*number, comma] * self.num_numbers
        steps = [*number, OPERATOR, *number, equals, *number, comma] * (self.num_numbers - 1)
        return [*numbers[:-1], arrow, *number, colon, *steps[:-1]]

    @property
    def _prompt_length(self) -> int:
        return (self.num_numbers + 1) * (self.num_digits + 1)

    def sample_solutions(self, n: int, generator: Generator | None = None) -> Examples:
        check_count("n", n, minimum=0)
        largest = 10**self.num_digits - 1
        numbers_Bk = torch.randint(1, largest + 1, (n, self.num_numbers), generator=generator)
        at_hand_Bm, steps, operators = numbers_Bk, [], []
        for _ in range(self.num_numbers - 1):
            order = torch.rand(at_hand_Bm.shape, generator=generator).argsort(dim=1)
            at_hand_Bm = at_hand_Bm.gather(1, order)
            a, b = at_hand_Bm[:, :2].amax(1), at_hand_Bm[:, :2].amin(1)
            results_B4 = torch.stack([a + b, a - b, a * b, a // b], dim=1)
            admissible_B4 = (results_B4 >= 1) & (results_B4 <= largest)
            admissible_B4[:, 3] &= a % b == 0
            draws_B4 = torch.rand(n, 4, generator=generator).masked_fill(~admissible_B4, -1.0)
            operator_B1 = draws_B4.argmax(1, keepdim=True)
            result_B1 = results_B4.gather(1, operator_B1)
            steps.append(torch.stack([a, b, result_B1.squeeze(1)], dim=1))
            operators.append(operator_B1)
            at_hand_Bm = torch.cat([at_hand_Bm[:, 2:], result_B1], dim=1)
        values_BN = torch.cat([numbers_Bk, at_hand_Bm, *steps], dim=1)
        template_L = torch.tensor(self._template)
        sequences = template_L.repeat(n, 1)
        sequences[:, template_L == DIGIT] = digits_of(values_BN, self.num_digits).flatten(1)
        sequences[:, template_L == OPERATOR] = torch.cat(operators, dim=1) + 10
        generation_mask = torch.zeros_like(sequences, dtype=torch.bool)
        generation_mask[:, self._prompt_length :] = True
        return Examples(sequences, generation_mask)

    def is_solution(self, sequences: Tensor) -> Tensor:
        template_L = torch.tensor(self._template, device=sequences.device)
        digits_BD, operators_BS = sequences[:, template_L == DIGIT], sequences[:, template_L == OPERATOR] - 10
        right_B = (digits_BD < 10).all(1) & ((operators_BS >= 0) & (operators_BS < 4)).all(1)
        right_B &= ((sequences == template_L) | (template_L < 0)).all(1)
        values_BN = number_of(digits_BD.unflatten(1, (-1, self.num_digits)))
        at_hand_Bm, target_B = values_BN[:, : self.num_numbers], values_BN[:, self.num_numbers]
        steps_BS3 = values_BN[:, self.num_numbers + 1 :].unflatten(1, (-1, 3))
        for step in range(self.num_numbers - 1):
            a, b, c = steps_BS3[:, step].unbind(1)
            # Division is checked by multiplication: b c = a with b > 0 has no remainder.
            exact_B4 = torch.stack([a + b == c, a - b == c, a * b == c, (b * c == a) & (b > 0)], dim=1)
            right_B &= exact_B4.gather(1, operators_BS[:, step, None].clamp(0, 3)).squeeze(1)
            for operand_B in (a, b):
                at_hand_Bm, found_B = _take_away(at_hand_Bm, operand_B)
                right_B &= found_B
            at_hand_Bm = torch.cat([at_hand_Bm, c[:, None]], dim=1)
        return right_B & (at_hand_Bm.squeeze(1) == target_B)


def _take_away(values_Bm: Tensor, value_B: Tensor) -> tuple[Tensor, Tensor]:
    """Each row without one value that equals ``value_B``, ``[B, m - 1]``, and whether there was one, bool ``[B]``."""
    equal_Bm = values_Bm == value_B[:, None]
    rest_Bm = torch.ones_like(equal_Bm).scatter_(1, equal_Bm.long().argmax(1, keepdim=True), False)
    return values_Bm[rest_Bm].view(len(values_Bm), values_Bm.shape[1] - 1), equal_Bm.any(1)
