"""Words against enumeration, and their distribution."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from discrete_distill.evaluation.tasks import BalancedBrackets
from discrete_distill.exact import enumerate_sequences

PAIRS = {")": "(", "]": "[", "}": "{", ">": "<"}


def balanced(text: str) -> bool:
    """By a stack of characters."""
    stack: list[str] = []
    for character in text:
        if character not in PAIRS:
            stack.append(character)
        elif not stack or stack.pop() != PAIRS[character]:
            return False
    return not stack


@pytest.mark.parametrize(
    ("num_pairs", "num_kinds", "count"), [(1, 1, 1), (3, 1, 5), (5, 1, 42), (3, 2, 40), (2, 4, 32)]
)
def test_right_answers_are_those_of_enumeration(num_pairs: int, num_kinds: int, count: int) -> None:
    task = BalancedBrackets(num_pairs, num_kinds, mask_token_id=8)
    words = enumerate_sequences(2 * num_kinds, task.length)
    expected = torch.tensor([balanced(task.render(word)) for word in words])
    assert torch.equal(task.is_solution(words), expected)
    assert int(expected.sum()) == task.num_solutions == count


@pytest.mark.parametrize(("num_pairs", "num_kinds"), [(5, 1), (3, 2)])
def test_words_are_drawn_uniformly(num_pairs: int, num_kinds: int) -> None:
    task = BalancedBrackets(num_pairs, num_kinds, mask_token_id=4)
    examples = task.sample_solutions(20_000, Generator().manual_seed(0))
    counts = examples.sequences.unique(dim=0, return_counts=True)[1]
    assert len(counts) == task.num_solutions
    expected, degrees = 20_000 / task.num_solutions, task.num_solutions - 1
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - degrees) < 4 * math.sqrt(2 * degrees)


@settings(max_examples=40, deadline=None)
@given(pairs=st.integers(1, 40), kinds=st.integers(1, 4), n=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_every_sampled_word_is_balanced(pairs: int, kinds: int, n: int, seed: int) -> None:
    task = BalancedBrackets(pairs, kinds, mask_token_id=2 * kinds)
    examples = task.sample_solutions(n, Generator().manual_seed(seed))
    assert all(balanced(task.render(word)) for word in examples.sequences)
    assert bool(task.verify(examples.sequences, examples.prompts(task.mask_token_id)).all())


@settings(max_examples=60, deadline=None)
@given(text=st.text("()[]", min_size=8, max_size=8))
def test_the_verifier_is_the_stack(text: str) -> None:
    task = BalancedBrackets(4, 2, mask_token_id=4)
    assert bool(task.is_solution(task.parse([text]))[0]) == balanced(text)


def test_unclosed_and_early_brackets_are_wrong() -> None:
    task = BalancedBrackets(2, 2, mask_token_id=4)
    wrong = ["((((", "))((", "([)]", "(]()", ")(()"]
    assert not bool(task.is_solution(task.parse(wrong)).any())


@pytest.mark.parametrize("wrong", [{"num_pairs": 0}, {"num_kinds": 5}, {"num_kinds": 0}, {"mask_token_id": 1}])
def test_sizes_that_do_not_fit_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"must be|is the id"):
        BalancedBrackets(**{"num_pairs": 3, "mask_token_id": 2, **wrong})
