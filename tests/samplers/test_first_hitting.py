"""First-hitting sampling is autoregression in random order, and what ancestral sampling tends to."""

import itertools
import math

import pytest
import torch
from counting import Counting, chi_square_p, counts_of, random_table, seeded
from enumerated import RandomNetwork, advance, as_tensor, draws, probabilities, put

from discrete_distill import (
    AncestralSampler,
    CosineSchedule,
    FirstHittingSampler,
    GeometricSchedule,
    MaskedDiffusion,
    exact,
)
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.samplers.positions import positions_at

MASK, DRAWS = 2, 20_000


def random_order_distribution(network, start):
    free = [i for i, token in enumerate(start) if token == MASK]
    total: dict = {}
    for order in itertools.permutations(free):
        distribution = {start: 1.0 / math.factorial(len(free))}
        for place in order:
            distribution = advance(
                distribution,
                lambda state, place=place: (
                    (p, put(state, tokens))
                    for p, tokens in draws({place: probabilities(network, state, 0.5, MASK)[place]})
                ),
            )
        for state, probability in distribution.items():
            total[state] = total.get(state, 0.0) + probability
    return as_tensor(total, 2, MASK)


@pytest.mark.parametrize("start", [(MASK,) * 4, (MASK, 1, MASK, MASK)])
def test_a_denoiser_that_ignores_time_is_read_in_a_uniformly_random_order(start) -> None:
    network = RandomNetwork(2, 4, seed=0)
    x_init = torch.tensor([start]).expand(DRAWS, -1)
    out = FirstHittingSampler(MaskedDiffusion(MASK))(network, x_init=x_init, generator=seeded(1))
    assert chi_square_p(counts_of(out.sequences, 2, MASK), random_order_distribution(network, start)) > 1e-3


def test_the_order_is_uniform_also_where_the_schedule_ends_early() -> None:
    """With ``alpha(1)`` near 1 nearly all times are 1: positions must still come in random order."""
    network, process = RandomNetwork(2, 3, seed=0), MaskedDiffusion(MASK, GeometricSchedule(0.01, 0.1))
    out = FirstHittingSampler(process)(network, (DRAWS, 3), generator=seeded(1))
    assert chi_square_p(counts_of(out.sequences, 2, MASK), random_order_distribution(network, (MASK,) * 3)) > 1e-3


def test_it_is_the_limit_of_many_ancestral_steps_for_a_denoiser_that_knows_the_time() -> None:
    process, steps = MaskedDiffusion(MASK, CosineSchedule()), 256
    early, late = (RandomNetwork(2, 3, seed=seed) for seed in (3, 4))

    def network(x, t):
        return torch.where(t[:, None, None] > 0.6, early(x, t), late(x, t))

    out = FirstHittingSampler(process)(network, (DRAWS, 3), generator=seeded(1))
    distribution = exact.sampler_distribution(network, process, exact.uniform_times(steps), 3, 2)
    assert chi_square_p(counts_of(out.sequences, 2, MASK), distribution) > 1e-3


@pytest.mark.parametrize("schedule", [CosineSchedule(), MaskedDiffusion(MASK).schedule])
def test_the_times_of_events_follow_the_schedule(schedule) -> None:
    """The time of the first of ``n`` events has ``P(tau <= t) = (1 - alpha_t) ** n``."""
    seen: list = []

    def network(x, t):
        seen.append(t)
        return torch.zeros(*x.shape, 3)

    FirstHittingSampler(MaskedDiffusion(MASK, schedule))(network, (DRAWS, 3), generator=seeded(2))
    at_half = (1.0 - schedule.alpha(torch.tensor(0.7)).item()) ** 3
    share = (seen[0] <= 0.7).float().mean().item()
    assert abs(share - at_half) < 5 * (at_half * (1 - at_half) / DRAWS) ** 0.5
    assert bool((seen[0] >= seen[1]).all())
    assert bool((seen[1] >= seen[2]).all())


def test_one_call_for_each_token_of_the_longest_sequence() -> None:
    network = Counting(random_table(2, 4, exact.uniform_times(1), 0, MASK))
    network.inner.starts = None
    x_init = torch.tensor([[0, MASK, MASK, 1], [MASK, MASK, MASK, 0], [0, 0, 0, 0]])
    out = FirstHittingSampler(MaskedDiffusion(MASK))(network, x_init=x_init, generator=seeded(0), return_history=True)
    assert out.nfe == network.calls == 3
    assert network.rows == 5
    assert out.history is not None
    revealed = [int((before != after).sum()) for before, after in itertools.pairwise(out.history)]
    assert revealed == [2, 2, 1]


def test_one_row_stands_for_all_at_first_where_time_is_ignored() -> None:
    for ignores, rows in ((True, 1 + 6 + 6), (False, 18)):
        network = Counting(RandomNetwork(2, 3, seed=0))
        network.time_conditioned = not ignores
        FirstHittingSampler(MaskedDiffusion(MASK))(network, (6, 3), generator=seeded(0))
        assert network.rows == rows


@pytest.mark.parametrize(("choices", "reads"), [({}, False), ({"time_conditioning": True}, True),
                                                ({"step_conditioning": True}, True)])  # fmt: skip
def test_a_transformer_says_whether_it_reads_the_time(choices, reads) -> None:
    config = DiTConfig(vocab_size=3, max_length=4, hidden_size=8, num_layers=1, num_heads=1, cond_size=4, **choices)
    network = DiT(config).eval()
    assert network.time_conditioned is reads
    asked: list[int] = []
    network.vocab_embed.register_forward_hook(lambda _module, inputs, _output: asked.append(len(inputs[0])))
    FirstHittingSampler(MaskedDiffusion(MASK))(network, (6, 2), generator=seeded(0))
    assert asked == [6 if reads else 1, 6]


def test_rows_are_flagged_positions_and_the_sequences_that_hold_them() -> None:
    flags = torch.tensor([[True, False], [False, False], [True, True]])
    rows = positions_at(flags)
    assert rows.index.tolist() == [0, 4, 5]
    assert rows.sequences is not None
    assert rows.sequences.tolist() == [0, 2]
    assert rows.compact.tolist() == [0, 2, 3]


def test_it_agrees_with_ancestral_sampling_in_what_it_costs_at_most() -> None:
    network = RandomNetwork(2, 3, seed=0)
    many = AncestralSampler(MaskedDiffusion(MASK), num_steps=512)(network, (64, 3), generator=seeded(0))
    few = FirstHittingSampler(MaskedDiffusion(MASK))(network, (64, 3), generator=seeded(0))
    assert few.nfe == 3 < many.nfe
