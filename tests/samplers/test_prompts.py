"""Prompts, suffixes and ragged batches as starts of samples."""

import pytest
import torch
from counting import seeded

from discrete_distill import AncestralSampler, MaskedDiffusion
from discrete_distill.samplers import prompted

M = 9


def test_prompts_stand_first_suffixes_last_and_masks_between() -> None:
    x_init, real = prompted([[1, 2], []], 5, M, suffixes=[[3], [4, 5]])
    assert x_init.tolist() == [[1, 2, M, M, 3], [M, M, M, 4, 5]]
    assert real is None


def test_a_ragged_batch_is_padded_on_the_right_and_its_padding_stays() -> None:
    x_init, real = prompted([[1], [2, 3]], [4, 2], M)
    assert x_init.tolist() == [[1, M, M, M], [2, 3, M, M]]
    assert real is not None
    assert real.tolist() == [[True] * 4, [True, True, False, False]]
    network = lambda x, t, attention_mask: torch.zeros(*x.shape, M + 1)  # noqa: E731
    sampler = AncestralSampler(MaskedDiffusion(M), num_steps=3)
    out = sampler(network, x_init=x_init, attention_mask=real, generator=seeded(0))
    assert (out.sequences != M).tolist() == real.tolist()


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="sequence 1: 3 tokens of prompt and 1 of suffix do not fit into 3"):
        prompted([[1], [1, 2, 3]], 3, M, suffixes=[[], [4]])
    with pytest.raises(ValueError, match="one length and one suffix for every prompt is needed"):
        prompted([[1], [2]], [3], M)


def test_ids_and_lengths_are_whole_numbers_in_range() -> None:
    for prompts, length in (([[1, -2]], 3), ([[]], 0), ([[1]], [-2])):
        with pytest.raises(ValueError, match="sequence 0"):
            prompted(prompts, length, M)
    for prompts, length in (([[1.5]], 3), ([["a"]], 3), ([[True]], 3), ([[1]], 3.0)):
        with pytest.raises(TypeError, match="sequence 0"):
            prompted(prompts, length, M)
    assert prompted(torch.tensor([[1, 2]]), 3, M)[0].tolist() == [[1, 2, M]]
