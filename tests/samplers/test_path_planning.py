"""P2 sampling against its enumerated distribution."""

import itertools
import math

import pytest
import torch
from counting import Counting, chi_square_p, counts_of, seeded
from enumerated import RandomNetwork, advance, as_tensor, draws, masked_positions, probabilities, put

from discrete_distill import LinearSchedule, MaskedDiffusion, PathPlanningSampler

MASK, DRAWS = 3, 20_000
PROCESS = MaskedDiffusion(MASK, LinearSchedule())


def distribution_of(network, start, steps, eta, planner=None):
    free = masked_positions(start, MASK)
    distribution = {start: 1.0}
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

        distribution = advance(distribution, moves)
    return as_tensor(distribution, 3, MASK)


@pytest.mark.parametrize(("start", "steps"), [((3, 3, 3), 3), ((3, 3, 1), 2)])
@pytest.mark.parametrize("eta", [0.0, 1.0, 3.0])
def test_samples_follow_the_enumerated_distribution(start, steps, eta) -> None:
    network = RandomNetwork(3, 3, 0, times=[1.0 - k / steps for k in range(steps)])
    sampler = PathPlanningSampler(PROCESS, num_steps=steps, eta=eta)
    out = sampler(network, x_init=torch.tensor([start]).expand(DRAWS, -1), generator=seeded(1))
    counts = counts_of(out.sequences, 3, MASK)
    assert chi_square_p(counts, distribution_of(network, start, steps, eta)) > 1e-3
    if eta == 3.0 and steps == 3:
        assert chi_square_p(counts, distribution_of(network, start, steps, 0.0)) < 1e-6


def test_a_planner_scores_what_is_written_and_is_counted() -> None:
    network, planner = RandomNetwork(3, 3, 0), Counting(lambda x, t: -(x + 0.1 * torch.arange(3)).double())
    sampler = PathPlanningSampler(PROCESS, num_steps=3, planner=planner)
    out = sampler(network, (DRAWS, 3), generator=seeded(1))
    assert planner.calls == 3
    assert (out.nfe, out.network_evaluations) == (3, 6)
    assert (
        chi_square_p(counts_of(out.sequences, 3, MASK), distribution_of(network, (3, 3, 3), 3, 1.0, planner.inner))
        > 1e-3
    )


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
    with pytest.raises(ValueError, match=r"eta.*-1"):
        PathPlanningSampler(PROCESS, eta=-1.0)


def test_with_eta_0_not_even_a_certain_draw_displaces_a_written_token() -> None:
    """Draws of probability 1 have log-probability 0, the score that written tokens would tie with."""
    certain = lambda x, t: 1e4 * torch.nn.functional.one_hot(torch.arange(8) % 3, 4).float().expand(len(x), -1, -1)  # noqa: E731
    flat = lambda x, t: torch.zeros(*x.shape, 4)  # noqa: E731

    def network(x, t):
        # At first the last positions are certain; then all are.
        late = torch.arange(8)[:, None] >= 4
        return torch.where((t[:, None, None] < 1.0) | late, certain(x, t), flat(x, t))

    sampler = PathPlanningSampler(PROCESS, num_steps=8, eta=0.0)
    out = sampler(network, (3, 8), generator=seeded(0), return_history=True)
    assert out.history is not None
    for before, after in itertools.pairwise(out.history):
        assert bool((after == before)[before != MASK].all())


def test_the_share_of_a_step_is_exact_under_the_default_schedule() -> None:
    sampler = PathPlanningSampler(MaskedDiffusion(MASK), num_steps=12)
    out = sampler(lambda x, t: torch.zeros(*x.shape, 4), (1, 12), generator=seeded(0), return_history=True)
    assert out.history is not None
    assert [int((state == MASK).sum()) for state in out.history] == list(range(12, -1, -1))


def test_a_planner_is_passed_padding_and_conditions_or_is_refused() -> None:
    heard = []

    def planner(x, t, attention_mask, topic):
        heard.append((attention_mask, topic))
        return -x.double()

    network = lambda x, t, **_: torch.zeros(*x.shape, 4)  # noqa: E731
    options = {
        "x_init": torch.tensor([[MASK, MASK, 0], [MASK, MASK, MASK]]),
        "attention_mask": torch.tensor([[True, True, False], [True, True, True]]),
        "model_kwargs": {"topic": torch.tensor([1, 2])},
        "generator": seeded(0),
    }
    PathPlanningSampler(PROCESS, num_steps=2, planner=planner)(network, **options)
    assert len(heard) == 2
    assert all(torch.equal(mask, options["attention_mask"]) for mask, _ in heard)
    assert all(torch.equal(topic, options["model_kwargs"]["topic"]) for _, topic in heard)
    with pytest.raises(TypeError, match="attention_mask"):
        PathPlanningSampler(PROCESS, planner=lambda x, t: -x.double())(network, **options)


@pytest.mark.parametrize("bad", [lambda x, t: x[:, 0].double(), lambda x, t: torch.full(x.shape, math.nan)])
def test_a_planner_of_another_shape_or_without_numbers_is_refused(bad) -> None:
    sampler = PathPlanningSampler(PROCESS, num_steps=3, planner=bad)
    with pytest.raises(ValueError, match="planner"):
        sampler(lambda x, t: torch.zeros(*x.shape, 4), (2, 3), generator=seeded(0))


def test_a_planner_that_would_not_be_asked_is_refused() -> None:
    with pytest.raises(ValueError, match="eta=0"):
        PathPlanningSampler(PROCESS, eta=0.0, planner=lambda x, t: x.double())
