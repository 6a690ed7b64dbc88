"""Tweedie tau-leaping: the ancestral step for normalised denoisers, and the enumerated distribution for score
networks."""

import itertools
import math

import pytest
import torch
from counting import Counting, chi_square_p, counts_of, seeded
from enumerated import RandomNetwork, advance, as_tensor, draws, masked_positions, put, subsets

from discrete_distill import (
    AnalyticSampler,
    AncestralSampler,
    GeometricSchedule,
    LinearSchedule,
    LogLinearSchedule,
    MaskedDiffusion,
)

MASK, DRAWS = 3, 20_000


def test_a_normalised_denoiser_takes_ancestral_steps_token_for_token() -> None:
    process, network = MaskedDiffusion(MASK), RandomNetwork(3, 4, 0)
    plain, analytic = (
        kind(process, num_steps=5, top_k=2)(network, (50, 4), generator=seeded(0))
        for kind in (AncestralSampler, AnalyticSampler)
    )
    assert bool((plain.sequences == analytic.sequences).all())
    assert plain.nfe == analytic.nfe


def score_distribution(network, process, start, times):
    distribution, schedule = {start: 1.0}, process.schedule
    for t, s in itertools.pairwise(times):
        growth = math.expm1(float(schedule.sigma(torch.tensor(t)) - schedule.sigma(torch.tensor(s))))

        def moves(state, t=t, s=s, growth=growth):
            scores = network(torch.tensor([state]), torch.tensor([t]))[0].double().exp()
            scores[:, MASK] = 0.0
            places, total = masked_positions(state, MASK), scores.sum(1)
            reveal = {i: 1.0 if s == 0.0 else min(growth * float(total[i]), 1.0) for i in places}
            for share, revealed in subsets(places, reveal):
                for p, tokens in draws({i: (scores[i] / total[i]).tolist() for i in sorted(revealed)}):
                    yield share * p, put(state, tokens)

        distribution = advance(distribution, moves)
    return as_tensor(distribution, 3, MASK)


@pytest.mark.parametrize("start", [(3, 3, 3), (3, 2, 3)])
@pytest.mark.parametrize("schedule", [GeometricSchedule(0.1, 3.0), LogLinearSchedule(0.05)])
def test_scores_that_do_not_add_up_decide_how_likely_a_token_is_to_come(schedule, start) -> None:
    process, times = MaskedDiffusion(MASK, schedule), [1.0, 0.7, 0.3, 0.0]
    network = RandomNetwork(3, 3, 0, times=times[:-1])
    network.logits -= 4.0
    x_init = torch.tensor([start]).expand(DRAWS, -1)
    out = AnalyticSampler(process, grid=times, outputs="log_scores")(network, x_init=x_init, generator=seeded(1))
    counts = counts_of(out.sequences, 3, MASK)
    assert chi_square_p(counts, score_distribution(network, process, start, times)) > 1e-3
    if start == (3, 3, 3):
        network.logits[:] += 1.0
        assert chi_square_p(counts, score_distribution(network, process, start, times)) < 1e-6


def test_the_scores_of_a_normalised_denoiser_give_its_ancestral_distribution() -> None:
    """``s_v = p(v) alpha / (1 - alpha)``: the growth of the scores is the ancestral probability."""
    process, network = MaskedDiffusion(MASK, LogLinearSchedule(0.05)), RandomNetwork(3, 3, 0)

    def log_scores(x, t):
        alpha = process.schedule.alpha(t)[:, None, None]
        return process.masked_log_probs(network(x, t)) + torch.log(alpha / (1.0 - alpha))

    times = [0.999, 0.6, 0.2, 0.0]
    scored = AnalyticSampler(process, grid=times, outputs="log_scores")(log_scores, (DRAWS, 3), generator=seeded(2))
    plain = AncestralSampler(process, grid=times)(network, (DRAWS, 3), generator=seeded(2))
    assert (scored.sequences == plain.sequences).float().mean() > 0.999


@pytest.mark.parametrize("static", [False, True])
def test_every_step_with_masks_is_one_call(static) -> None:
    process = MaskedDiffusion(MASK, GeometricSchedule(0.1, 3.0))
    network = Counting(RandomNetwork(3, 3, 0))
    network.inner.logits -= 4.0
    sampler = AnalyticSampler(process, num_steps=4, outputs="log_scores", static=static)
    out = sampler(network, (200, 3), generator=seeded(0))
    assert out.nfe == network.calls == 4
    assert bool((out.sequences != MASK).all())


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"outputs": "scores"}, "outputs is .*, got 'scores'"),
        ({"outputs": "log_scores", "cfg_scale": 2.0}, "leave it at 1 with log-scores"),
        ({"outputs": "log_scores", "process": MaskedDiffusion(3, LinearSchedule())}, r"has alpha\(1\) = 0"),
    ],
)
def test_bad_choices_are_refused(choices, message) -> None:
    with pytest.raises(ValueError, match=message):
        AnalyticSampler(**{"process": MaskedDiffusion(3), **choices})
