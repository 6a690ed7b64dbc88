"""Prompts, suffixes and ragged batches as starts of samples."""

import pytest
import torch
from counting import Counting, seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from discrete_distill import (
    AncestralSampler,
    BlockwiseSampler,
    ConfidenceSampler,
    CudaGraphSampler,
    Frame,
    MaskedDiffusion,
)
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


class FakeTokenizer:
    """Puts ``[CLS] ... [SEP]`` around a text, as tokenizers of BERT and ESM do."""

    mask_token, mask_token_id = "[MASK]", M

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [2, *[M] * text.count("[MASK]"), 3]}


FRAME_SAMPLERS = [
    AncestralSampler(MaskedDiffusion(M), num_steps=3),
    ConfidenceSampler(MaskedDiffusion(M), num_steps=2),
    BlockwiseSampler(AncestralSampler(MaskedDiffusion(M), num_steps=2), block_length=2),
]


@settings(max_examples=20)
@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.lists(st.integers(0, 8), max_size=2),
    st.lists(st.integers(0, 8), max_size=2),
    st.sampled_from(FRAME_SAMPLERS),
)
def test_a_frame_in_place_of_a_length_is_the_same_as_its_x_init(batch, length, prefix, suffix, sampler) -> None:
    frame = Frame(length, prefix, suffix)
    x_init = frame.x_init(batch, mask_token_id=M)
    assert x_init.tolist() == [[*prefix, *[M] * length, *suffix]] * batch
    network = lambda x, t: (x[..., None] + torch.arange(M + 1)).sin() + x.sum(1)[:, None, None].cos()  # noqa: E731
    out = sampler(network, (batch, frame), generator=seeded(0))
    assert torch.equal(out.sequences, sampler(network, x_init=x_init, generator=seeded(0)).sequences)
    given_positions = x_init != M
    assert torch.equal(out.sequences[given_positions], x_init[given_positions])
    assert not bool((out.sequences == M).any())


def test_rows_of_a_frame_are_one_state_until_something_is_written() -> None:
    network = Counting(lambda x, t: torch.zeros(*x.shape, M + 1))
    AncestralSampler(MaskedDiffusion(M), num_steps=1)(network, (8, Frame(4, [1], [2])), generator=seeded(0))
    assert network.rows == 1


def test_a_frame_is_read_from_a_tokenizer() -> None:
    assert Frame.from_tokenizer(FakeTokenizer(), 5) == Frame(5, (2,), (3,))
    bare = type("Bare", (), {"mask_token": None})()
    with pytest.raises(ValueError, match="None"):
        Frame.from_tokenizer(bare, 5)


def test_frames_that_mean_nothing_are_refused() -> None:
    for make in (lambda: Frame(0), lambda: Frame(2, [-1])):
        with pytest.raises(ValueError, match=r"-1|0"):
            make()
    for make in (lambda: Frame(2.5), lambda: Frame(2, ["a"])):
        with pytest.raises(TypeError, match=r"2\.5|'a'"):
            make()
    sampler = CudaGraphSampler(AncestralSampler(MaskedDiffusion(M)), capture=False)
    with pytest.raises(ValueError, match="Frame"):
        sampler(lambda x, t: torch.zeros(*x.shape, M + 1), (2, Frame(3, [1])), generator=seeded(0))
