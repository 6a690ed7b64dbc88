"""ReMDM against its enumerated distribution, and against the marginals that it must keep."""

import itertools
import math

import pytest
import torch
from counting import Counting, chi_square_p, counts_of, seeded
from enumerated import RandomNetwork, advance, as_tensor, draws, probabilities, subsets

from discrete_distill import AncestralSampler, LinearSchedule, MaskedDiffusion, ReMaskingSampler

MASK, DRAWS = 2, 20_000
PROCESS = MaskedDiffusion(MASK, LinearSchedule())
TIMES = [1.0, 0.7, 0.4, 0.2, 0.0]


def sigma_of(strategy, eta, t, s):
    """From the paper's equations, with alpha = 1 - t."""
    greatest = 1.0 if t == 1.0 else min(1.0, s / (1.0 - t))
    return min(eta, greatest) if strategy == "cap" else eta * greatest


def distribution_of(network, start, strategy, eta):
    """States carry the probability with which each token was drawn; given tokens carry None."""
    distribution = {(start, tuple(None for _ in start)): 1.0}
    for t, s in itertools.pairwise(TIMES):

        def moves(pair, t=t, s=s):
            state, drawn = pair
            sigma = sigma_of(strategy, eta, t, s)
            rows = probabilities(network, state, t, MASK)
            masked = [i for i, token in enumerate(state) if token == MASK]
            written = [i for i in range(len(state)) if i not in masked and start[i] == MASK]
            total = sum(math.exp(-drawn[i]) for i in written)
            hide = {i: sigma * math.exp(-drawn[i]) / total if strategy == "conf" else sigma for i in written}
            alpha_t, alpha_s = 1.0 - t, 1.0 - s
            with_sigma = 0.0 if strategy == "conf" else sigma
            reveal = dict.fromkeys(masked, (alpha_s - (1.0 - with_sigma) * alpha_t) / (1.0 - alpha_t))
            for share, changed in subsets([*masked, *written], {**reveal, **hide}):
                for p, tokens in draws({i: rows[i] for i in masked if i in changed}):
                    after, psi = list(state), list(drawn)
                    for i in written:
                        if i in changed:
                            after[i], psi[i] = MASK, None
                    for i, token in tokens.items():
                        after[i], psi[i] = token, round(rows[i][token], 9)
                    yield share * p, (tuple(after), tuple(psi))

        distribution = advance(distribution, moves)
    words: dict = {}
    for (state, _), probability in distribution.items():
        words[state] = words.get(state, 0.0) + probability
    return as_tensor(words, 2, MASK)


@pytest.mark.parametrize("start", [(MASK,) * 3, (MASK, MASK, 1)])
@pytest.mark.parametrize(("strategy", "eta"), [("cap", 0.3), ("rescale", 0.8), ("conf", 1.0)])
def test_samples_follow_the_enumerated_distribution(strategy, eta, start) -> None:
    network = RandomNetwork(2, 3, 0, times=TIMES[:-1])
    sampler = ReMaskingSampler(PROCESS, grid=TIMES, strategy=strategy, eta=eta)
    out = sampler(network, x_init=torch.tensor([start]).expand(DRAWS, -1), generator=seeded(1))
    counts = counts_of(out.sequences, 2, MASK)
    assert chi_square_p(counts, distribution_of(network, start, strategy, eta)) > 1e-3
    if start == (MASK,) * 3 and strategy != "conf":
        assert chi_square_p(counts, distribution_of(network, start, strategy, 0.0)) < 1e-6


@pytest.mark.parametrize("strategy", ["cap", "rescale"])
def test_as_many_positions_are_masked_at_every_time_as_without_remasking(strategy) -> None:
    network = RandomNetwork(2, 4, 0)
    sampler = ReMaskingSampler(PROCESS, num_steps=6, strategy=strategy, eta=0.9)
    out = sampler(network, (5000, 4), generator=seeded(0), return_history=True)
    assert out.history is not None
    for t, state in zip(sampler.times, out.history, strict=True):
        share = (state == MASK).float().mean().item()
        assert abs(share - t) < 5 * (t * (1 - t) / 20_000) ** 0.5 + 1e-9
    hidden = sum(int(((a != MASK) & (b == MASK)).sum()) for a, b in zip(out.history, out.history[1:], strict=False))
    assert hidden > 5000


@pytest.mark.parametrize("strategy", ["cap", "rescale", "conf"])
def test_without_strength_it_is_ancestral_sampling_token_for_token(strategy) -> None:
    network = RandomNetwork(2, 4, 0)
    plain = AncestralSampler(PROCESS, num_steps=5)(network, (60, 4), generator=seeded(0))
    other = ReMaskingSampler(PROCESS, num_steps=5, strategy=strategy, eta=0.0)(network, (60, 4), generator=seeded(0))
    assert bool((plain.sequences == other.sequences).all())
    assert bool((plain.log_probs == other.log_probs).all())


def test_given_tokens_are_never_hidden_and_no_mask_is_left() -> None:
    network = Counting(RandomNetwork(2, 4, 0))
    x_init = torch.tensor([[0, MASK, MASK, 1]]).expand(500, -1)
    for strategy in ("cap", "rescale", "conf"):
        sampler = ReMaskingSampler(PROCESS, num_steps=16, strategy=strategy, eta=1.0)
        before = network.calls
        out = sampler(network, x_init=x_init, generator=seeded(0), return_history=True)
        assert out.history is not None
        for state in out.history:
            assert bool((state[:, 0] == 0).all())
            assert bool((state[:, 3] == 1).all())
        assert bool((out.sequences != MASK).all())
        assert out.nfe == network.calls - before == 16


def test_log_probs_are_those_of_the_last_draw() -> None:
    network = RandomNetwork(2, 3, 0)
    sampler = ReMaskingSampler(PROCESS, num_steps=6, strategy="rescale", eta=1.0)
    out = sampler(network, (300, 3), generator=seeded(0), return_history=True)
    assert out.history is not None
    expected = torch.zeros(300, 3)
    for before, after in zip(out.history, out.history[1:], strict=False):
        log_probs = PROCESS.masked_log_probs(network(before, torch.zeros(300)))
        drawn = log_probs.gather(2, after[..., None])[..., 0]
        expected = torch.where((before == MASK) & (after != MASK), drawn, expected)
    torch.testing.assert_close(out.log_probs, expected, atol=1e-5, rtol=1e-5)


def test_bad_choices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strategy is .*, got 'loop'"):
        ReMaskingSampler(PROCESS, strategy="loop")
    with pytest.raises(ValueError, match=r"eta.*1.5"):
        ReMaskingSampler(PROCESS, eta=1.5)
