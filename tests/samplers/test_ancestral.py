"""Ancestral sampling against its exact distribution."""

import pytest
import torch
from counting import Counting, InTwoParts, chi_square_p, counts_of, random_table, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from discrete_distill import AncestralSampler, exact
from discrete_distill.process import CosineSchedule, GeometricSchedule, LogLinearSchedule, MaskedDiffusion

DRAWS = 20_000


def exact_distribution(denoiser, process, steps: int, length: int, vocab_size: int) -> Tensor:
    return exact.sampler_distribution(denoiser, process, exact.uniform_times(steps), length, vocab_size)


@pytest.mark.parametrize("schedule", [LogLinearSchedule(), CosineSchedule(), GeometricSchedule()])
@pytest.mark.parametrize(("steps", "vocab_size", "length", "mask"), [(1, 3, 3, 3), (2, 3, 3, 0), (4, 2, 4, 1)])
def test_samples_follow_the_exact_distribution(schedule, steps, vocab_size, length, mask) -> None:
    process = MaskedDiffusion(mask, schedule)
    table = random_table(vocab_size, length, exact.uniform_times(steps), 0, mask)
    out = AncestralSampler(process, num_steps=steps)(table, (DRAWS, length), generator=seeded(1))
    counts = counts_of(out.sequences, vocab_size, mask)
    assert chi_square_p(counts, exact_distribution(table, process, steps, length, vocab_size)) > 1e-3


def test_the_test_would_notice_another_number_of_steps() -> None:
    process, (chain, length) = MaskedDiffusion(3), (exact.random_chain(3, seeded(2)), 4)
    denoiser = chain.denoiser(3)
    out = AncestralSampler(process, num_steps=2)(denoiser, (DRAWS, length), generator=seeded(1))
    counts = counts_of(out.sequences, 3, 3)
    assert chi_square_p(counts, exact_distribution(denoiser, process, 2, length, 3)) > 1e-3
    assert chi_square_p(counts, exact_distribution(denoiser, process, 3, length, 3)) < 1e-6


@pytest.mark.parametrize("given_words", [{0: 1}, {1: 2}, {0: 0, 3: 1}])
def test_prompts_and_infills_follow_the_distribution_of_the_rest(given_words) -> None:
    """The distribution of a sampler that starts with some words is that of a shorter sampler that is told them."""
    process, length, steps = MaskedDiffusion(3), 4, 3
    table = random_table(3, length, exact.uniform_times(steps), 3, 3)
    free = [i for i in range(length) if i not in given_words]
    x_init = torch.full((1, length), 3)
    for place, word in given_words.items():
        x_init[0, place] = word

    def rest(x_t, t):
        whole = x_init.expand(len(x_t), -1).clone()
        whole[:, free] = x_t
        return table(whole, t)[:, free]

    out = AncestralSampler(process, num_steps=steps)(table, x_init=x_init.expand(DRAWS, -1), generator=seeded(4))
    for place, word in given_words.items():
        assert bool((out.sequences[:, place] == word).all())
        assert bool((out.log_probs[:, place] == 0).all())
    distribution = exact_distribution(rest, process, steps, len(free), 3)
    assert chi_square_p(counts_of(out.sequences[:, free], 3, 3), distribution) > 1e-3


def test_temperature_is_that_of_the_tokens() -> None:
    process = MaskedDiffusion(3)
    table = random_table(3, 3, exact.uniform_times(2), 5, 3)
    out = AncestralSampler(process, num_steps=2, temperature=0.5)(table, (DRAWS, 3), generator=seeded(6))
    distribution = exact_distribution(lambda x, t: table(x, t) / 0.5, process, 2, 3, 3)
    assert chi_square_p(counts_of(out.sequences, 3, 3), distribution) > 1e-3


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 999), st.booleans())
def test_no_mask_is_left_and_neither_prompt_nor_padding_is_written(steps, length, seed, padded) -> None:
    generator = seeded(seed)
    x_init = torch.randint(4, (5, length), generator=generator)
    real = torch.rand(5, length, generator=generator) < 0.7 if padded else None
    x_init = x_init if real is None else x_init.masked_fill(~real, 3)
    chain = exact.random_chain(3, seeded(seed), 1.0)
    out = AncestralSampler(MaskedDiffusion(3), num_steps=steps)(
        lambda x, t, attention_mask=None: chain.denoiser(3)(x, t),
        x_init=x_init,
        attention_mask=real,
        generator=generator,
        return_history=True,
    )
    generation_mask = (x_init == 3) if real is None else (x_init == 3) & real
    assert bool((out.sequences[~generation_mask] == x_init[~generation_mask]).all())
    assert bool((out.sequences[generation_mask] != 3).all())
    assert out.history is not None
    assert len(out.history) == steps + 1
    assert bool((out.history[0] == x_init).all())
    assert bool((out.history[-1] == out.sequences).all())
    for before, after in zip(out.history, out.history[1:], strict=False):
        assert bool((after[before != 3] == before[before != 3]).all())


@pytest.mark.parametrize(("steps", "length"), [(1, 5), (4, 5), (64, 3)])
def test_nfe_is_the_number_of_calls_and_empty_steps_are_free(steps, length) -> None:
    chain = exact.random_chain(3, seeded(0), 1.0)
    denoiser = Counting(chain.denoiser(3))
    out = AncestralSampler(MaskedDiffusion(3), num_steps=steps)(denoiser, (2, length), generator=seeded(1))
    assert out.nfe == out.network_evaluations == denoiser.calls
    assert 1 <= out.nfe <= min(steps, 2 * length)


def test_a_finished_batch_costs_nothing() -> None:
    denoiser = Counting(exact.random_chain(3, seeded(0), 1.0).denoiser(3))
    x = torch.tensor([[0, 1, 2]])
    out = AncestralSampler(MaskedDiffusion(3), num_steps=4)(denoiser, x_init=x, generator=seeded(1))
    assert (out.nfe, denoiser.calls) == (0, 0)
    assert bool((out.sequences == x).all())


def test_a_seed_fixes_the_tokens_of_a_row_whatever_the_batch() -> None:
    table = random_table(3, 5, exact.uniform_times(6), 7, 3)
    sampler = AncestralSampler(MaskedDiffusion(3), num_steps=6)
    small, large = (sampler(table, (rows, 5), generator=seeded(8)) for rows in (7, 64))
    assert bool((small.sequences == large.sequences[:7]).all())
    torch.testing.assert_close(small.log_probs, large.log_probs[:7])
    again, other = (sampler(table, (64, 5), generator=seeded(seed)).sequences for seed in (8, 9))
    assert bool((again == large.sequences).all())
    assert not bool((other == large.sequences).all())


def test_a_row_draws_the_same_whatever_its_neighbours_hold() -> None:
    """Counters are those of the place in the batch, not of the order in which positions are drawn."""
    table = random_table(3, 5, exact.uniform_times(4), 7, 3)
    sampler, free = AncestralSampler(MaskedDiffusion(3), num_steps=4), torch.full((8, 5), 3)
    neighbours_given = free.clone()
    neighbours_given[:4, 1:] = 0
    both = [sampler(table, x_init=x, generator=seeded(8)).sequences[4:] for x in (free, neighbours_given)]
    assert bool((both[0] == both[1]).all())


def test_a_denoiser_with_a_head_of_its_own_gives_the_same_tokens() -> None:
    table = random_table(3, 5, exact.uniform_times(4), 7, 3)
    sampler = AncestralSampler(MaskedDiffusion(3), num_steps=4)
    plain, parted = (sampler(network, (50, 5), generator=seeded(3)) for network in (table, InTwoParts(table)))
    assert bool((plain.sequences == parted.sequences).all())
    assert bool((plain.log_probs == parted.log_probs).all())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_the_denoisers_at_the_state_that_the_token_was_drawn_in(temperature) -> None:
    process, steps = MaskedDiffusion(3), 3
    times = exact.uniform_times(steps)
    table = random_table(3, 4, times, 9, 3)
    sampler = AncestralSampler(process, num_steps=steps, temperature=temperature)
    out = sampler(table, (200, 4), generator=seeded(0), return_history=True)
    expected = torch.zeros(200, 4, dtype=torch.float64)
    assert out.history is not None
    for step in range(steps):
        before, after = out.history[step], out.history[step + 1]
        logits = table(before, times[step].expand(200)) / temperature
        token = process.masked_log_probs(logits).gather(2, after[..., None]).squeeze(2)
        expected += torch.where((before == 3) & (after != 3), token, 0.0).detach()
    torch.testing.assert_close(out.log_probs, expected.float(), atol=1e-5, rtol=1e-5)
    assert bool((out.log_probs < 0).all())


def test_the_step_is_told_to_a_denoiser_that_accepts_it_and_the_callback_sees_each_state() -> None:
    steps_seen, states = [], []

    class Told:
        accepts_step = True

        def __call__(self, x_t, t, /, *, s):
            steps_seen.append((float(t[0]), float(s[0])))
            return torch.zeros(*x_t.shape, 4)

    sampler = AncestralSampler(MaskedDiffusion(3), num_steps=2)
    out = sampler(Told(), (64, 6), generator=seeded(0), callback=lambda step, x_t: states.append((step, x_t)))
    assert steps_seen == [(1.0, 0.5), (0.5, 0.0)]
    assert [step for step, _ in states] == [0, 1]
    assert bool((states[-1][1] == out.sequences).all())


def test_padding_is_told_to_the_denoiser_in_the_all_mask_state_too() -> None:
    """Rows of one state that differ in their padding are not alike."""
    real = torch.arange(6)[None, :] < torch.tensor([[6], [3]])

    def by_number_of_real_tokens(x_t, t, attention_mask):
        first_word = attention_mask.sum(1).float()[:, None, None] * torch.tensor([1.0, 0.0, 0.0, 0.0])
        return first_word.expand(-1, x_t.shape[1], -1)

    sampler = AncestralSampler(MaskedDiffusion(3), num_steps=1)
    out = sampler(by_number_of_real_tokens, (2, 6), attention_mask=real, generator=seeded(2))
    scores = torch.tensor([[6.0], [3.0]]) * (out.sequences == 0)
    expected = (scores - torch.tensor([[6.0], [3.0]]).exp().add(2.0).log()) * real
    torch.testing.assert_close(out.log_probs, expected, atol=1e-5, rtol=1e-4)
    assert out.sequences[1, 3:].tolist() == [3, 3, 3]


def test_nothing_is_differentiated() -> None:
    table = random_table(3, 3, exact.uniform_times(2), 0, 3)
    out = AncestralSampler(MaskedDiffusion(3), num_steps=2)(table, (4, 3), generator=seeded(0))
    assert not out.log_probs.requires_grad


def test_bad_arguments_are_refused() -> None:
    table, process = random_table(3, 3, exact.uniform_times(2), 0, 3), MaskedDiffusion(3)
    with pytest.raises(ValueError, match=r"num_steps.*0"):
        AncestralSampler(process, num_steps=0)(table, (1, 3))
    with pytest.raises(ValueError, match="either shape"):
        AncestralSampler(process)(table)
    with pytest.raises(ValueError, match=r"temperature.*0"):
        AncestralSampler(process, num_steps=2, temperature=0.0)(table, (1, 3))
