"""P2 sampling against its enumerated law."""

import math

import pytest
import torch
from counting import Counting, chi_square_p, counts_of, seeded
from enumerated import RandomNetwork, advance, as_tensor, draws, masked_positions, probabilities, put

from discrete_distill import LinearSchedule, MaskedDiffusion, PathPlanningSampler

MASK, DRAWS = 3, 20_000
PROCESS = MaskedDiffusion(MASK, LinearSchedule())


def law_of(network, start, steps, eta, planner=None):
    free = masked_positions(start, MASK)
    law = {start: 1.0}
    for step in range(steps):
        t, hidden = 1.0 - step / steps, math.floor(len(free) * (1.0 - (step + 1) / steps) + 1e-6)

        def moves(state, t=t, hidden=hidden):
            rows = probabilities(network, state, t, MASK)
            places = masked_positions(state, MASK)
            for p, tokens in draws({i: rows[i] for i in places}):
                filled = put(state, tokens)
                planned = None if planner is None else planner(torch.tensor([filled]), torch.tensor([t]))[0].tolist()

                def score(i, filled=filled, planned=planned):
                    if i in places:
                        return math.log(rows[i][filled[i]])
                    return eta * (math.log(rows[i][filled[i]]) if planned is None else planned[i])

                lowest = sorted(free, key=lambda i, score=score: (-score(i), i))[len(free) - hidden :]
                yield p, put(filled, dict.fromkeys(lowest, MASK))

        law = advance(law, moves)
    return as_tensor(law, 3, MASK)


@pytest.mark.parametrize(("start", "steps"), [((3, 3, 3), 3), ((3, 3, 1), 2)])
@pytest.mark.parametrize("eta", [0.0, 1.0, 3.0])
def test_samples_follow_the_enumerated_law(start, steps, eta) -> None:
    network = RandomNetwork(3, 3, 0, times=[1.0 - k / steps for k in range(steps)])
    sampler = PathPlanningSampler(PROCESS, num_steps=steps, eta=eta)
    out = sampler(network, x_init=torch.tensor([start]).expand(DRAWS, -1), generator=seeded(1))
    counts = counts_of(out.sequences, 3, MASK)
    assert chi_square_p(counts, law_of(network, start, steps, eta)) > 1e-3
    if eta == 3.0 and steps == 3:
        assert chi_square_p(counts, law_of(network, start, steps, 0.0)) < 1e-6


def test_a_planner_scores_what_is_written_and_is_counted() -> None:
    network, planner = RandomNetwork(3, 3, 0), Counting(lambda x, t: -(x + 0.1 * torch.arange(3)).double())
    sampler = PathPlanningSampler(PROCESS, num_steps=3, planner=planner)
    out = sampler(network, (DRAWS, 3), generator=seeded(1))
    assert planner.calls == 3
    assert (out.nfe, out.network_evaluations) == (3, 6)
    assert chi_square_p(counts_of(out.sequences, 3, MASK), law_of(network, (3, 3, 3), 3, 1.0, planner.inner)) > 1e-3


def test_eta_decides_whether_written_tokens_are_masked_again() -> None:
    network = RandomNetwork(3, 3, 0)
    again = {}
    for eta in (0.0, 5.0):
        sampler = PathPlanningSampler(PROCESS, num_steps=3, eta=eta)
        out = sampler(network, (500, 3), generator=seeded(0), return_history=True)
        assert out.history is not None
        pairs = zip(out.history, out.history[1:], strict=False)
        again[eta] = sum(int(((a != MASK) & (b == MASK)).sum()) for a, b in pairs)
        assert [(state == MASK).sum(1).unique().tolist() for state in out.history] == [[3], [2], [1], [0]]
    assert again[0.0] == 0 < again[5.0]


def test_a_negative_eta_is_refused() -> None:
    with pytest.raises(ValueError, match="eta must be 0 or more, got -1"):
        PathPlanningSampler(PROCESS, eta=-1.0)
