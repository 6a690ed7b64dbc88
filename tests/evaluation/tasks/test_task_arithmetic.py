"""Answers against Python's integers."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from discrete_distill.evaluation.tasks import Arithmetic

MASK = 12


@settings(max_examples=40, deadline=None)
@given(digits=st.integers(1, 9), operation=st.sampled_from("+*"), seed=st.integers(0, 2**31))
def test_every_sampled_answer_is_that_of_integers(digits: int, operation: str, seed: int) -> None:
    task = Arithmetic(digits, operation, mask_token_id=MASK)
    examples = task.sample_solutions(4, Generator().manual_seed(seed))
    prompts = examples.prompts(MASK)
    assert bool(task.verify(examples.sequences, prompts).all())
    assert not bool(task.verify(prompts.x_init, prompts).any())
    for row in examples.sequences:
        a, b, c = map(int, re.split(r"[+*=]", task.render(row)))
        assert c == (a + b if operation == "+" else a * b)
        assert len(task.render(row)) == task.length


@pytest.mark.parametrize("operation", ["+", "*"])
def test_one_answer_alone_is_right(operation: str) -> None:
    task = Arithmetic(1, operation, mask_token_id=MASK)
    for a in range(10):
        for b in range(10):
            sequences = task.parse([f"{a}{operation}{b}={c:02d}" for c in range(100)])
            assert task.is_solution(sequences).nonzero().flatten().tolist() == [a + b if operation == "+" else a * b]


def test_other_signs_and_other_prompts_are_rejected() -> None:
    task = Arithmetic(2, mask_token_id=MASK)
    assert task.is_solution(task.parse(["01+02=003", "01=02=003", "01+02+003", "0++02=003", "01+02=0=3"])).tolist() == [
        True, False, False, False, False
    ]  # fmt: skip
    prompts = task.sample_prompts(1, Generator().manual_seed(0))
    other = task.parse(["01+02=003"])
    assert not torch.equal(prompts.x_init[:, :6], other[:, :6])
    assert not bool(task.verify(other, prompts)[0])


@pytest.mark.parametrize("wrong", [{"num_digits": 0}, {"num_digits": 10}, {"operation": "-"}, {"mask_token_id": 11}])
def test_sizes_that_do_not_fit_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"must be|is one of|is the id"):
        Arithmetic(**{"num_digits": 3, "mask_token_id": MASK, **wrong})
