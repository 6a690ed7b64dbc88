"""Entropy-bounded sampling against its enumerated distribution."""

import math

import pytest
import torch
from counting import Counting, chi_square_p, counts_of, seeded
from enumerated import RandomNetwork, advance, as_tensor, draws, masked_positions, probabilities, put

from discrete_distill import EntropyBoundedSampler, MaskedDiffusion
from discrete_distill.samplers.entropy_bounded import kept_under

MASK, DRAWS = 3, 20_000
PROCESS = MaskedDiffusion(MASK)


def distribution_of(network, start, gamma):
    distribution = {start: 1.0}
    for _ in range(len(start)):

        def moves(state):
            places = masked_positions(state, MASK)
            if not places:
                yield 1.0, state
                return
            rows = probabilities(network, state, 0.5, MASK)
            entropy = {i: -sum(p * math.log(p) for p in rows[i] if p > 0.0) for i in places}
            ordered = sorted(places, key=lambda i: (entropy[i], i))
            kept = [ordered[: n + 1] for n in range(len(ordered))]
            within = [each for each in kept if sum(entropy[i] for i in each) - entropy[each[-1]] <= gamma]
            for p, tokens in draws({i: rows[i] for i in places}):
                yield p, put(state, {i: tokens[i] for i in within[-1]})

        distribution = advance(distribution, moves)
    return as_tensor(distribution, 3, MASK)


@pytest.mark.parametrize("start", [(3, 3, 3), (3, 0, 3)])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 10.0])
def test_samples_follow_the_enumerated_distribution(start, gamma) -> None:
    network = RandomNetwork(3, 3, 0)
    x_init = torch.tensor([start]).expand(DRAWS, -1)
    out = EntropyBoundedSampler(PROCESS, gamma=gamma)(network, x_init=x_init, generator=seeded(1))
    assert chi_square_p(counts_of(out.sequences, 3, MASK), distribution_of(network, start, gamma)) > 1e-3


@pytest.mark.parametrize(("gamma", "calls"), [(0.0, 5), (100.0, 1)])
def test_the_bound_decides_between_one_token_and_all_a_step(gamma, calls) -> None:
    network = Counting(RandomNetwork(2, 5, 0))
    out = EntropyBoundedSampler(MaskedDiffusion(2), gamma=gamma)(network, (8, 5), generator=seeded(0))
    assert out.nfe == network.calls == calls


def test_certain_tokens_cost_nothing_and_come_at_once() -> None:
    def certain(x, t):
        return 1e3 * torch.nn.functional.one_hot(torch.arange(6) % 3, 4).float().expand(len(x), -1, -1)

    out = EntropyBoundedSampler(PROCESS, gamma=0.0)(certain, (2, 6), generator=seeded(0))
    assert out.nfe == 1
    assert out.sequences.tolist() == [[0, 1, 2, 0, 1, 2]] * 2


def test_the_longest_prefix_is_kept_and_the_greatest_entropy_in_it_is_free() -> None:
    entropy = torch.tensor([[0.3, 0.1, 0.5, 0.2], [2.0, 9.0, 9.0, 1.0]])
    masked = torch.tensor([[True] * 4, [True, False, False, True]])
    score = (-entropy).masked_fill(~masked, -torch.inf)
    # In order 0.1, 0.2, 0.3, 0.5: their sums but for the last are 0, 0.1, 0.3, 0.6.
    assert kept_under(0.35, score, entropy * masked, masked).tolist() == [
        [True, True, False, True],
        [False, False, False, True],
    ]


def test_the_denoiser_is_told_the_time_of_as_many_masks() -> None:
    times = []

    def network(x, t):
        times.append((t.tolist(), ((x == MASK).sum(1) / 4).tolist()))
        return torch.zeros(*x.shape, 4)

    EntropyBoundedSampler(MaskedDiffusion(MASK), gamma=0.0)(
        network, x_init=torch.full((2, 4), MASK), generator=seeded(0)
    )
    for told, share in times:
        assert told == pytest.approx([min(each / (1 - 1e-3), 1.0) for each in share])


def test_a_negative_bound_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gamma.*-0.1"):
        EntropyBoundedSampler(PROCESS, gamma=-0.1)
