"""Permutations against enumeration, and their distribution."""

import math

import pytest
import torch
from torch import Generator

from discrete_distill.evaluation.tasks import Permutations
from discrete_distill.exact import enumerate_sequences


def test_right_answers_are_those_of_enumeration() -> None:
    task = Permutations(4, mask_token_id=4)
    words = enumerate_sequences(4, 4)
    assert torch.equal(task.is_solution(words), torch.tensor([len(set(word)) == 4 for word in words.tolist()]))
    assert int(task.is_solution(words).sum()) == task.num_solutions == 24


def test_orders_are_drawn_uniformly() -> None:
    task = Permutations(4, mask_token_id=7)
    examples = task.sample_solutions(10_000, Generator().manual_seed(0))
    counts = examples.sequences.unique(dim=0, return_counts=True)[1]
    assert len(counts) == 24
    expected = 10_000 / 24
    assert abs(float(((counts - expected) ** 2 / expected).sum()) - 23) < 4 * math.sqrt(46)


@pytest.mark.parametrize("size", [2, 9, 52])
def test_every_sampled_order_verifies_and_no_change_of_a_letter_does(size: int) -> None:
    task = Permutations(size, mask_token_id=size)
    examples = task.sample_solutions(5, Generator().manual_seed(size))
    prompts = examples.prompts(size)
    assert bool(task.verify(examples.sequences, prompts).all())
    changed = examples.sequences.clone()
    changed[:, 0] = changed[:, 1]
    assert not bool(task.verify(changed, prompts).any())
    assert torch.equal(task.parse([task.render(row) for row in examples.sequences]), examples.sequences)


@pytest.mark.parametrize("wrong", [{"size": 1}, {"size": 53}, {"mask_token_id": 2}])
def test_sizes_that_do_not_fit_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"must be|is the id"):
        Permutations(**{"size": 3, "mask_token_id": 3, **wrong})
