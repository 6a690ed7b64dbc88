"""Block after block: the law is a product, the callback counts on, and any sampler will do."""

import pytest
import torch
from counting import Counting, chi_square_p, counts_of, seeded
from enumerated import RandomNetwork, advance, as_tensor, draws, probabilities, put

from discrete_distill import (
    AncestralSampler,
    BlockwiseSampler,
    ConfidenceSampler,
    FirstHittingSampler,
    MaskedDiffusion,
    RGASampler,
)

MASK = 2
PROCESS = MaskedDiffusion(MASK)


@pytest.mark.parametrize("block_length", [1, 2, 3])
def test_blocks_follow_each_other_from_left_to_right(block_length) -> None:
    """With one step a block the law is a product of blocks, each given those before it and masks after it."""
    network, length, count = RandomNetwork(2, 4, 0), 4, 20_000
    law = {(MASK,) * length: 1.0}
    for start in range(0, length, block_length):
        block = range(start, min(start + block_length, length))

        def moves(state, block=block):
            rows = probabilities(network, state, 1.0, MASK)
            return ((p, put(state, tokens)) for p, tokens in draws({i: rows[i] for i in block}))

        law = advance(law, moves)
    sampler = BlockwiseSampler(AncestralSampler(PROCESS, num_steps=1), block_length)
    out = sampler(network, (count, length), generator=seeded(1))
    assert chi_square_p(counts_of(out.sequences, 2, MASK), as_tensor(law, 2, MASK)) > 1e-3
    assert out.nfe == -(-length // block_length)


def test_one_block_is_the_sampler_itself() -> None:
    network, inner = RandomNetwork(2, 4, 0), ConfidenceSampler(PROCESS, num_steps=3)
    plain = inner(network, (20, 4), generator=seeded(3))
    blocked = BlockwiseSampler(inner, 4)(network, shape=(20, 4), generator=seeded(3))
    assert bool((plain.sequences == blocked.sequences).all())
    assert bool((plain.log_probs == blocked.log_probs).all())


def test_prompts_stay_blocks_without_masks_are_free_and_steps_are_counted_on() -> None:
    network, seen = Counting(RandomNetwork(2, 6, 0)), []
    x_init = torch.tensor([[0, 1, MASK, MASK, 1, 0], [0, 0, MASK, 1, 1, 1]])
    sampler = BlockwiseSampler(AncestralSampler(PROCESS, num_steps=3), 2)
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
    for inner, others in (
        (FirstHittingSampler(PROCESS), ()),
        (RGASampler(PROCESS, num_steps=2, num_candidates=2), (lambda z, t: z.float(),)),
    ):
        out = BlockwiseSampler(inner, 2)(network, *others, (30, 4), generator=seeded(0), return_history=True)
        assert out.history is not None
        first_done = next(i for i, state in enumerate(out.history) if bool((state[:, :2] != MASK).all()))
        assert all(bool((state[:, 2:] == MASK).all()) for state in out.history[: first_done + 1])
        assert bool((out.sequences != MASK).all())
        assert int(out.log_probs.count_nonzero()) == 120


def test_the_last_block_may_be_shorter_and_bad_blocks_are_refused() -> None:
    out = BlockwiseSampler(AncestralSampler(PROCESS, num_steps=2), 3)(RandomNetwork(2, 4, 0), (5, 4))
    assert bool((out.sequences != MASK).all())
    with pytest.raises(ValueError, match="block_length must be at least 1, got 0"):
        BlockwiseSampler(AncestralSampler(PROCESS), 0)
    with pytest.raises(ValueError, match="must be finished before the next begins"):
        BlockwiseSampler(AncestralSampler(PROCESS, end=0.1, noise_removal="none"), 2)
