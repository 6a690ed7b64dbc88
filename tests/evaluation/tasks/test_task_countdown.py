"""Answers against a checker that reads text with exact fractions, and against exhaustive search."""

import itertools
import re
from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from discrete_distill.evaluation.tasks import Countdown

MASK = 18
OPERATIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else None,
}


def checked(text: str, num_numbers: int, num_digits: int) -> bool:
    """The rules, on text."""
    number = rf"(\d{{{num_digits}}})"
    prompt = ",".join([number] * num_numbers) + f">{number}:"
    steps = ",".join([rf"{number}([-+*/]){number}={number}"] * (num_numbers - 1))
    match = re.fullmatch(prompt + steps, text)
    if match is None:
        return False
    at_hand = Counter(Fraction(n) for n in match.groups()[:num_numbers])
    target, *rest = match.groups()[num_numbers:]
    for a, operator, b, c in zip(rest[::4], rest[1::4], rest[2::4], rest[3::4], strict=True):
        for operand in (a, b):
            if not at_hand[Fraction(operand)]:
                return False
            at_hand[Fraction(operand)] -= 1
        if OPERATIONS[operator](Fraction(a), Fraction(b)) != Fraction(c):
            return False
        at_hand[Fraction(c)] += 1
    return list(at_hand.elements()) == [Fraction(target)]


@settings(max_examples=40, deadline=None)
@given(numbers=st.integers(2, 6), digits=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_every_sampled_answer_is_right(numbers: int, digits: int, seed: int) -> None:
    task = Countdown(numbers, digits, mask_token_id=MASK)
    examples = task.sample_solutions(5, Generator().manual_seed(seed))
    prompts = examples.prompts(MASK)
    assert bool(task.verify(examples.sequences, prompts).all())
    assert not bool(task.verify(prompts.x_init, prompts).any())
    for row in examples.sequences:
        assert checked(task.render(row), numbers, digits)
        assert len(task.render(row)) == task.length


def test_right_answers_of_two_numbers_are_those_of_enumeration() -> None:
    task = Countdown(2, 1, mask_token_id=MASK)
    answers = [f"{a}{operator}{b}={c}" for a, operator, b, c in itertools.product("2468", "+-*/", "2468", "0123456789")]
    for prompt in ("6,2>8:", "6,2>4:", "6,2>3:", "2,4>8:", "4,4>1:", "4,4>0:", "6,4>1:"):
        texts = [prompt + answer for answer in answers]
        accepted = task.is_solution(task.parse(texts)).tolist()
        assert accepted == [checked(text, 2, 1) for text in texts]
        assert any(accepted) == (prompt != "6,4>1:")


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**31), position=st.integers(0, 10**6), symbol=st.sampled_from("0123456789+-*/=,>:"))
def test_each_change_of_a_character_is_judged_by_the_rules(seed: int, position: int, symbol: str) -> None:
    task = Countdown(3, 1, mask_token_id=MASK)
    row = task.sample_solutions(1, Generator().manual_seed(seed)).sequences[0]
    text = task.render(row)
    place = position % task.length
    changed = text[:place] + symbol + text[place + 1 :]
    assert bool(task.is_solution(task.parse([changed]))[0]) == checked(changed, 3, 1)


def test_numbers_are_used_once_and_results_may_be() -> None:
    task = Countdown(3, 2, mask_token_id=MASK)
    right = ["25,10,04>31:25+10=35,35-04=31", "25,10,04>31:10+25=35,35-04=31", "06,06,06>06:06/06=01,06*01=06"]
    wrong = [
        "25,10,04>50:25+25=50,50-00=50",  # Twice the same number.
        "25,10,04>35:25+10=35,35+00=35",  # A number that was not given.
        "25,10,04>29:25+10=35,25+04=29",  # A number that was used up.
        "25,10,04>02:25/10=02,02*01=02",  # A remainder.
        "25,10,04>00:25*04=00,00*10=00",  # Too long for two digits.
        "25,10,04>31:25+10=35,35-04=32",  # A wrong result.
        "00,00,04>04:00/00=04,04-00=04",  # Division by zero.
    ]
    assert task.is_solution(task.parse(right)).all()
    assert not task.is_solution(task.parse(wrong)).any()
    assert all(checked(text, 3, 2) for text in right)
    assert not any(checked(text, 3, 2) for text in wrong)


def test_all_operators_occur() -> None:
    task = Countdown(mask_token_id=MASK)
    examples = task.sample_solutions(500, Generator().manual_seed(0)).sequences
    assert {10, 11, 12, 13} <= set(torch.unique(examples).tolist())


@pytest.mark.parametrize("wrong", [{"num_numbers": 1}, {"num_digits": 0}, {"num_digits": 10}, {"mask_token_id": 17}])
def test_sizes_that_do_not_fit_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"must be|is the id"):
        Countdown(**{"num_numbers": 3, "mask_token_id": MASK, **wrong})
