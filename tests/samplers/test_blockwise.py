"""Block after block: the distribution is a product, the callback counts on, and any sampler will do."""

import pytest
import torch
from counting import Counting, chi_square_p, counts_of, seeded
from enumerated import RandomNetwork, advance, as_tensor, draws, probabilities, put
from hypothesis import given, settings
from hypothesis import strategies as st
from llada import Convolution, decode_by_factor, decode_by_threshold, generate

from discrete_distill import (
    AncestralSampler,
    BlockwiseSampler,
    ConfidenceSampler,
    FirstHittingSampler,
    LinearSchedule,
    MaskedDiffusion,
    RGASampler,
)
from discrete_distill.models import DiT, DiTConfig

MASK = 2
PROCESS = MaskedDiffusion(MASK)


@pytest.mark.parametrize("block_length", [1, 2, 3])
def test_blocks_follow_each_other_from_left_to_right(block_length) -> None:
    """With one step a block the distribution is a product of blocks, each given those before it and masks after it."""
    network, length, count = RandomNetwork(2, 4, 0), 4, 20_000
    distribution = {(MASK,) * length: 1.0}
    for start in range(0, length, block_length):
        block = range(start, min(start + block_length, length))

        def moves(state, block=block):
            rows = probabilities(network, state, 1.0, MASK)
            return ((p, put(state, tokens)) for p, tokens in draws({i: rows[i] for i in block}))

        distribution = advance(distribution, moves)
    sampler = BlockwiseSampler(AncestralSampler(PROCESS, num_steps=1), block_length=block_length)
    out = sampler(network, (count, length), generator=seeded(1))
    assert chi_square_p(counts_of(out.sequences, 2, MASK), as_tensor(distribution, 2, MASK)) > 1e-3
    assert out.nfe == -(-length // block_length)


def test_one_block_is_the_sampler_itself() -> None:
    network, inner = RandomNetwork(2, 4, 0), ConfidenceSampler(PROCESS, num_steps=3)
    plain = inner(network, (20, 4), generator=seeded(3))
    blocked = BlockwiseSampler(inner, block_length=4)(network, shape=(20, 4), generator=seeded(3))
    assert bool((plain.sequences == blocked.sequences).all())
    assert bool((plain.log_probs == blocked.log_probs).all())


def test_prompts_stay_blocks_without_masks_are_free_and_steps_are_counted_on() -> None:
    network, seen = Counting(RandomNetwork(2, 6, 0)), []
    x_init = torch.tensor([[0, 1, MASK, MASK, 1, 0], [0, 0, MASK, 1, 1, 1]])
    sampler = BlockwiseSampler(AncestralSampler(PROCESS, num_steps=3), block_length=2)
    out = sampler(
        network,
        x_init=x_init,
        generator=seeded(0),
        return_history=True,
        callback=lambda step, state: seen.append((step, state)),
    )
    assert bool((out.sequences[x_init != MASK] == x_init[x_init != MASK]).all())
    assert bool((out.sequences != MASK).all())
    assert out.nfe == network.calls <= 3
    assert [step for step, _ in seen] == [0, 1, 2]
    assert out.history is not None
    assert len(out.history) == 4
    assert bool((seen[-1][1] == out.sequences).all())


def test_later_blocks_are_masks_while_earlier_ones_are_drawn_by_any_sampler() -> None:
    network = RandomNetwork(2, 4, 0)
    for inner in (
        FirstHittingSampler(PROCESS),
        RGASampler(PROCESS, reward=lambda x_t, t: x_t.float(), num_steps=2, num_candidates=2),
    ):
        out = BlockwiseSampler(inner, block_length=2)(network, (30, 4), generator=seeded(0), return_history=True)
        assert out.history is not None
        first_done = next(i for i, state in enumerate(out.history) if bool((state[:, :2] != MASK).all()))
        assert all(bool((state[:, 2:] == MASK).all()) for state in out.history[: first_done + 1])
        assert bool((out.sequences != MASK).all())
        assert int(out.log_probs.count_nonzero()) == 120


def test_the_last_block_may_be_shorter_and_bad_blocks_are_refused() -> None:
    out = BlockwiseSampler(AncestralSampler(PROCESS, num_steps=2), block_length=3)(RandomNetwork(2, 4, 0), (5, 4))
    assert bool((out.sequences != MASK).all())
    with pytest.raises(ValueError, match=r"block_length.*0"):
        BlockwiseSampler(AncestralSampler(PROCESS), block_length=0)
    with pytest.raises(ValueError, match="must be finished before the next begins"):
        BlockwiseSampler(AncestralSampler(PROCESS, end=0.1, noise_removal="none"), block_length=2)


WORDS, END = 5, 5  # five words, and the mask
SCHEDULES = {"default": MaskedDiffusion(END), "linear": MaskedDiffusion(END, LinearSchedule())}


def ragged(prompts, gen_lengths, side):
    """Prompts and masks of all rows, padded with a word on the left or on the right."""
    rows = [[*prompt, *[END] * gen_length] for prompt, gen_length in zip(prompts, gen_lengths, strict=True)]
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    whole = [pad + row if side == "left" else row + pad for pad, row in zip(pads, rows, strict=True)]
    real = [
        [False] * len(pad) + [True] * len(row) if side == "left" else [True] * len(row) + [False] * len(pad)
        for pad, row in zip(pads, rows, strict=True)
    ]
    return torch.tensor(whole), torch.tensor(real)


layouts = st.lists(st.tuples(st.integers(0, 7), st.integers(1, 13)), min_size=1, max_size=3)


@pytest.mark.parametrize("schedule", SCHEDULES)
@settings(max_examples=60)
@given(layouts, st.integers(1, 13), st.integers(1, 9), st.sampled_from(["left", "right"]), st.integers(0, 10**6))
def test_the_tokens_are_those_of_llada_whatever_prompts_blocks_steps_and_padding(
    schedule, layout, block_length, steps, side, seed
) -> None:
    network = Convolution(WORDS + 1, 24, seed)
    prompts = [torch.randint(WORDS, (size,), generator=seeded(seed + size)).tolist() for size, _ in layout]
    gen_lengths = [length for _, length in layout]
    x_init, real = ragged(prompts, gen_lengths, side)
    inner = ConfidenceSampler(SCHEDULES[schedule], num_steps=steps, greedy=True, precision=torch.float64)
    out = BlockwiseSampler(inner, block_length=block_length)(network, x_init=x_init, attention_mask=real)
    for row, (prompt, gen_length) in enumerate(zip(prompts, gen_lengths, strict=True)):
        expected = generate(network, prompt, gen_length, block_length, steps, END)
        assert out.sequences[row][real[row]].tolist() == expected
    assert bool((out.sequences[~real] == 0).all())


@settings(max_examples=40)
@given(layouts, st.integers(1, 13), st.floats(0.05, 1.0), st.sampled_from(["left", "right"]), st.integers(0, 10**6))
def test_by_threshold_the_tokens_are_those_of_fast_dllm(layout, block_length, threshold, side, seed) -> None:
    network = Convolution(WORDS + 1, 24, seed)
    prompts = [torch.randint(WORDS, (size,), generator=seeded(seed + size)).tolist() for size, _ in layout]
    x_init, real = ragged(prompts, [length for _, length in layout], side)
    inner = ConfidenceSampler(SCHEDULES["linear"], threshold=threshold, greedy=True, precision=torch.float64)
    out = BlockwiseSampler(inner, block_length=block_length)(network, x_init=x_init, attention_mask=real)
    calls = []
    for row, (prompt, (_, length)) in enumerate(zip(prompts, layout, strict=True)):
        expected, count = decode_by_threshold(network, prompt, length, block_length, END, threshold)
        assert out.sequences[row][real[row]].tolist() == expected
        calls.append(count)
    assert max(calls) <= out.nfe <= sum(calls)


@settings(max_examples=40)
@given(st.integers(1, 13), st.floats(0.1, 4.0), st.integers(0, 10**6))
def test_by_factor_the_tokens_are_those_of_the_published_bound(length, factor, seed) -> None:
    network = Convolution(WORDS + 1, 24, seed)
    inner = ConfidenceSampler(SCHEDULES["linear"], factor=factor, greedy=True, precision=torch.float64)
    assert inner(network, (1, length)).sequences.tolist() == [decode_by_factor(network, length, END, factor)]


def test_guidance_in_blocks_is_by_the_prompt_alone() -> None:
    network, prompt = Convolution(WORDS + 1, 16, 3), [1, 4, 0]
    x_init, _ = ragged([prompt], [8], "right")
    inner = ConfidenceSampler(SCHEDULES["linear"], num_steps=4, greedy=True, precision=torch.float64, cfg_scale=2.5)
    out = BlockwiseSampler(inner, block_length=4)(network, x_init=x_init)
    expected = [generate(network, prompt, 8, 4, 4, END, cfg_scale) for cfg_scale in (1.5, 0.0)]
    assert out.sequences.tolist() == expected[:1] != expected[1:]


def test_blocks_begin_behind_the_prompt_or_at_the_first_real_token() -> None:
    network = Convolution(WORDS + 1, 24, 0)
    for side in ("left", "right"):
        x_init, real = ragged([[1, 2, 3, 4, 0], [1]], [8, 8], side)
        firsts = {}
        for align in ("prompt", "start"):
            sampler = BlockwiseSampler(AncestralSampler(SCHEDULES["linear"], num_steps=1), block_length=4, align=align)
            out = sampler(network, x_init=x_init, attention_mask=real, generator=seeded(0), return_history=True)
            assert out.history is not None
            firsts[align] = [(out.history[1] != x_init)[row][real[row]].nonzero().flatten().tolist() for row in (0, 1)]
        # Blocks of the start hold positions 0 to 3 and 4 to 7: each row begins with the first that it has to write in.
        assert firsts == {"prompt": [[5, 6, 7, 8], [1, 2, 3, 4]], "start": [[5, 6, 7], [1, 2, 3]]}


def test_a_network_that_reads_by_blocks_is_not_shown_whole_sequences_in_silence(recwarn) -> None:
    config = DiTConfig(
        vocab_size=PROCESS.mask_token_id + 1, max_length=8, hidden_size=8, num_layers=1, num_heads=1, cond_size=4,
        block_length=4,
    )  # fmt: skip
    sampler, network = AncestralSampler(PROCESS, num_steps=2), DiT(config)
    BlockwiseSampler(sampler, block_length=4, align="start", cache="exact")(network, (1, 8), generator=seeded(0))
    sampler(network, (1, 4), generator=seeded(0))  # One block.
    assert not recwarn.list
    with pytest.warns(UserWarning, match="block_length=4"):
        sampler(network, (1, 8), generator=seeded(0))


def test_what_is_no_sampler_or_no_alignment_is_refused() -> None:
    with pytest.raises(ValueError, match="'end'"):
        BlockwiseSampler(AncestralSampler(PROCESS), block_length=2, align="end")
    with pytest.raises(TypeError):
        BlockwiseSampler(AncestralSampler(PROCESS), block_length=2.0)
    with pytest.raises(TypeError):
        BlockwiseSampler(BlockwiseSampler(AncestralSampler(PROCESS), block_length=2), block_length=2)
    with pytest.raises(TypeError):
        BlockwiseSampler(AncestralSampler(PROCESS), block_length=2)(RandomNetwork(2, 4, 0), "judge", (3, 4))
