"""Confidence sampling against its enumerated distribution."""

import itertools
import math
import re

import pytest
import torch
from counting import Counting, chi_square_p, counts_of, seeded
from enumerated import RandomNetwork, advance, as_tensor, draws, masked_positions, probabilities, put

from discrete_distill import ConfidenceSampler, LinearSchedule, LogLinearSchedule, MaskedDiffusion

MASK, DRAWS, LENGTH = 3, 20_000, 3
PROCESS = MaskedDiffusion(MASK, LinearSchedule())


def score(order, row, token):
    if order == "confidence":
        return math.log(row[token])
    if order == "margin":
        first, second = sorted(row, reverse=True)[:2]
        return first - second
    return sum(p * math.log(p) for p in row if p > 0.0)


def distribution_of(network, start, steps, order, temperature=1.0):
    free = len(masked_positions(start, MASK))
    distribution = {start: 1.0}
    for step in range(steps):
        t, left = 1.0 - step / steps, math.floor(free * (1.0 - (step + 1) / steps) + 1e-6)

        def moves(state, t=t, left=left):
            rows = probabilities(network, state, t, MASK, temperature)
            places = masked_positions(state, MASK)
            for p, tokens in draws({i: rows[i] for i in places}):
                surest = sorted(places, key=lambda i: (-score(order, rows[i], tokens[i]), i))
                yield p, put(state, {i: tokens[i] for i in surest[: len(places) - left]})

        distribution = advance(distribution, moves)
    return as_tensor(distribution, 3, MASK)


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize(("start", "steps"), [((3, 3, 3), 2), ((3, 3, 3), 3), ((3, 1, 3), 2)])
def test_samples_follow_the_enumerated_distribution(order, start, steps) -> None:
    network = RandomNetwork(3, LENGTH, 0, times=[1.0 - k / steps for k in range(steps)])
    sampler = ConfidenceSampler(PROCESS, num_steps=steps, order=order, temperature=0.8)
    x_init = torch.tensor([start]).expand(DRAWS, -1)
    out = sampler(network, x_init=x_init, generator=seeded(1))
    counts = counts_of(out.sequences, 3, MASK)
    assert chi_square_p(counts, distribution_of(network, start, steps, order, 0.8)) > 1e-3
    if order == "confidence" and len(set(start)) == 1:
        assert chi_square_p(counts, distribution_of(network, start, steps, "margin", 0.8)) < 1e-6


@pytest.mark.parametrize("threshold", [0.3, 0.6, 1.0])
def test_by_threshold_samples_follow_the_enumerated_distribution(threshold) -> None:
    network, distribution = RandomNetwork(3, LENGTH, 0), {(MASK,) * LENGTH: 1.0}

    def moves(state):
        places = masked_positions(state, MASK)
        if not places:
            return [(1.0, state)]
        rows = probabilities(network, state, 1.0, MASK)

        def certain(tokens):
            surest = min(places, key=lambda i: (-rows[i][tokens[i]], i))
            return {i: tokens[i] for i in places if i == surest or rows[i][tokens[i]] >= threshold}

        return [(p, put(state, certain(tokens))) for p, tokens in draws({i: rows[i] for i in places})]

    for _ in range(LENGTH):
        distribution = advance(distribution, moves)
    out = ConfidenceSampler(PROCESS, threshold=threshold)(network, (DRAWS, LENGTH), generator=seeded(1))
    assert chi_square_p(counts_of(out.sequences, 3, MASK), as_tensor(distribution, 3, MASK)) > 1e-3
    assert out.nfe <= LENGTH


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.0},
        {"threshold": 1.5},
        {"factor": 0.0},
        {"threshold": 0.9, "factor": 1.0},
        {"threshold": 0.9, "num_steps": 4},
        {"threshold": 0.9, "grid": [1.0, 0.0]},
        {"factor": 1.0, "order": "margin"},
        {"factor": 1.0, "order_temperature": 0.5},
    ],
)
def test_a_threshold_is_a_probability_and_stands_alone(options) -> None:
    with pytest.raises(ValueError, match=re.escape(str(list(options.values())[-1]))):
        ConfidenceSampler(PROCESS, **options)


def test_the_greedy_path_takes_the_most_likely_token_where_the_order_is_surest() -> None:
    network = RandomNetwork(3, LENGTH, 5)
    out = ConfidenceSampler(PROCESS, num_steps=LENGTH, greedy=True)(network, (4, LENGTH), generator=seeded(0))
    state = (MASK,) * LENGTH
    for _ in range(LENGTH):
        rows = probabilities(network, state, 0.5, MASK)
        place = max(masked_positions(state, MASK), key=lambda i: max(rows[i]))
        state = put(state, {place: rows[place].index(max(rows[place]))})
    assert out.sequences.tolist() == [list(state)] * 4


def test_noise_in_the_order_draws_positions_from_the_softmax_of_their_scores() -> None:
    """Three positions with entropies 0.0, ln 2 and ln 3 by construction; the first revealed follows exp(-H / T)."""
    logits = torch.full((3, 4), -torch.inf)
    logits[0, 0] = logits[1, :2] = logits[2, :3] = torch.tensor(0.0)

    def network(x, t):
        return logits.expand(len(x), 3, 4)

    temperature = 0.7
    sampler = ConfidenceSampler(PROCESS, num_steps=3, order="entropy", order_temperature=temperature)
    out = sampler(network, (DRAWS, 3), generator=seeded(2), return_history=True)
    assert out.history is not None
    first = (out.history[1] != MASK).double().mean(0)
    entropies = torch.tensor([0.0, math.log(2.0), math.log(3.0)]).double()
    expected = (-entropies / temperature).softmax(0)
    assert bool(((first - expected).abs() < 5 * (expected * (1 - expected) / DRAWS).sqrt()).all())


@pytest.mark.parametrize("static", [False, True])
def test_each_step_reveals_its_share_and_steps_without_one_are_free(static) -> None:
    network = Counting(RandomNetwork(3, LENGTH, 0))
    x_init = torch.tensor([[3, 3, 3], [3, 0, 3], [1, 1, 3]])
    sampler = ConfidenceSampler(PROCESS, num_steps=8, static=static)
    out = sampler(network, x_init=x_init, generator=seeded(0), return_history=True)
    assert out.history is not None
    left = [(state == MASK).sum(1).tolist() for state in out.history]
    expected = [[max(n - k, 0) for n in (3, 2, 1)] for k in range(9)]
    assert left == expected
    moving = [any(a != b for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(expected)]
    assert out.nfe == network.calls == sum(moving) < 8


@pytest.mark.parametrize("masks_and_steps", [(12, 12), (32, 32), (32, 8), (3, 3), (128, 64), (12, 5), (7, 12)])
@pytest.mark.parametrize("schedule", [LogLinearSchedule(), LinearSchedule()], ids=str)
def test_every_call_reveals_its_share_and_none_is_wasted(schedule, masks_and_steps) -> None:
    masks, steps = masks_and_steps
    network = Counting(lambda x, t: torch.zeros(*x.shape, 4))
    out = ConfidenceSampler(MaskedDiffusion(MASK, schedule), num_steps=steps)(network, (1, masks), return_history=True)
    assert out.history is not None
    left = [int((state == MASK).sum()) for state in out.history]
    expected = [masks // steps + (step < masks % steps) for step in range(steps)]
    assert [before - after for before, after in itertools.pairwise(left)] == expected
    assert out.nfe == network.calls == min(masks, steps)


def test_bad_choices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"order is one of .*, got 'random'"):
        ConfidenceSampler(PROCESS, order="random")
    with pytest.raises(ValueError, match=r"order_temperature.*-1"):
        ConfidenceSampler(PROCESS, order_temperature=-1.0)
