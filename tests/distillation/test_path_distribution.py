"""Paths under a temperature, an order, forbidden ids and an end of sequence, against enumeration."""

import itertools

import pytest
import torch
from scipy import stats
from torch import Tensor

from discrete_distill import IntermediateStateMatcher, MaskedDiffusion
from discrete_distill.distillation.end_of_sequence import EndOfSequence
from discrete_distill.distillation.rollout import Rollout
from discrete_distill.process import LinearSchedule

MASK, LENGTH, STEPS, DRAWS = 3, 3, 2, 20_000
PROCESS = MaskedDiffusion(MASK, LinearSchedule())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


TABLE = torch.randn(4**LENGTH, LENGTH, 4, dtype=torch.float64, generator=seeded(0))


def student(x_t: Tensor, t: Tensor) -> Tensor:
    return TABLE[(x_t * 4 ** torch.arange(LENGTH - 1, -1, -1)).sum(1)] * (1.0 + t)[:, None, None].double()


def all_outcomes(order: str, temperature: float, forbidden: tuple[int, ...], end: EndOfSequence | None):
    """Every path of two even steps as ``{((state, revealed), ...): probability}``, in plain Python.

    Of 3 masks the first step reveals 2 by an order (largest remainders, the first step first), the outer two or the
    inner one in strides, and each with probability 1/2 otherwise."""
    words = [v for v in range(3) if v not in forbidden]

    def rows(state, t):
        logits = student(torch.tensor([state]), torch.tensor([t]))[0] / temperature
        logits[:, [MASK, *forbidden]] = -torch.inf
        return logits.softmax(-1)

    def certainty(p):
        top = p.sort(descending=True).values
        return float(top[0] - top[1]) if order == "margin" else float((p * p.clamp(min=1e-300).log()).sum())

    paths = {(((MASK,) * LENGTH, ()),): 1.0}
    for step in range(STEPS):
        after: dict[tuple, float] = {}
        for path, share in paths.items():
            state, last = path[-1][0], step == STEPS - 1
            masked = [i for i in range(LENGTH) if state[i] == MASK]
            p = rows(state, 1.0 - step / STEPS)
            if last:
                sets = [(1.0, masked)]
            elif order == "strided":
                sets = [(0.5, [0, 2]), (0.5, [1])]
            elif order == "random":
                sets = [(0.5 ** len(masked), list(each)) for each in subsets(masked)]
            else:
                sets = [(1.0, sorted(masked, key=lambda i: (-certainty(p[i]), i))[:2])]
            for weight, places in sets:
                for tokens in itertools.product(words, repeat=len(places)):
                    new = list(state)
                    probability = share * weight
                    for i, token in zip(places, tokens, strict=True):
                        new[i] = token
                        probability *= float(p[i, token])
                    if end is not None and end.policy == "stop" and end.token_id in new:
                        first = new.index(end.token_id)
                        new = [end.token_id if i > first and v == MASK else v for i, v in enumerate(new)]
                    key = (*path, (tuple(new), tuple(sorted(places))))
                    after[key] = after.get(key, 0.0) + probability
        paths = after
    return paths


def subsets(places):
    return itertools.chain.from_iterable(itertools.combinations(places, k) for k in range(len(places) + 1))


def path_of(rollout: Rollout, row: int) -> tuple:
    path = [((MASK,) * LENGTH, ())]
    for step in rollout.steps:
        places = step.revealed_positions()
        places = places[places // LENGTH == row] % LENGTH
        path.append((tuple(step.x_s[row].tolist()), tuple(places.tolist())))
    return tuple(path)


CASES = {
    "temperature": ({"temperature": 0.5}, ()),
    "forbidden": ({}, (1,)),
    "strided": ({"order": "strided"}, ()),
    "stop in strides": ({"end_token_id": 0, "end_policy": "stop", "order": "strided"}, (2,)),
    "margin": ({"order": "margin"}, ()),
    "entropy, tempered": ({"order": "entropy", "temperature": 1.5}, ()),
    "stop": ({"end_token_id": 0, "end_policy": "stop"}, ()),
    "stop by order": ({"end_token_id": 0, "end_policy": "stop", "order": "margin"}, (2,)),
    "padding": ({"end_token_id": 0, "end_policy": "padding"}, ()),
    "no end": ({"end_token_id": 0, "end_policy": "forbidden"}, ()),
}


@pytest.mark.parametrize("case", CASES)
def test_paths_follow_the_enumerated_distribution_and_know_their_probability(case) -> None:
    choices, forbidden = CASES[case]
    process = MaskedDiffusion(MASK, LinearSchedule(), forbidden)
    matcher = IntermediateStateMatcher(process, num_steps=(STEPS,), **choices)
    with torch.no_grad():
        rollout = matcher(student, (DRAWS, LENGTH), generator=seeded(1))
    end = rollout.end
    if choices.get("end_policy") == "forbidden":
        forbidden = (*forbidden, choices["end_token_id"])
    order = choices.get("order", "random")
    paths = all_outcomes(order, choices.get("temperature", 1.0), forbidden, end)
    assert sum(paths.values()) == pytest.approx(1.0)
    # The log-probability of a path is that of its tokens given its positions; these have 1 / 2 each at random.
    found = rollout.log_prob()
    for row in range(200):
        path = path_of(rollout, row)
        assert float(found[row].exp()) * positions_share(path, order) == pytest.approx(paths[path], rel=1e-4)
    # Samples, by chi-square; outcomes that are expected fewer than five times are put together.
    ends: dict[tuple, float] = {}
    for path, probability in paths.items():
        ends[path[-1][0]] = ends.get(path[-1][0], 0.0) + probability
    count = dict.fromkeys(ends, 0)
    for sample in rollout.sequences.tolist():
        count[tuple(sample)] += 1
    rare = [key for key, probability in ends.items() if probability * DRAWS < 5.0]
    expected = [probability * DRAWS for key, probability in ends.items() if key not in rare]
    observed = [count[key] for key in ends if key not in rare]
    if rare:
        expected.append(sum(ends[key] for key in rare) * DRAWS)
        observed.append(sum(count[key] for key in rare))
    expected_sum = sum(expected)
    assert stats.chisquare(observed, [each * DRAWS / expected_sum for each in expected]).pvalue > 1e-3


def positions_share(path: tuple, order: str) -> float:
    """Probability of the positions that the first step revealed."""
    return {"random": 0.5**LENGTH, "strided": 0.5}.get(order, 1.0)


@pytest.mark.parametrize("order", ["margin", "entropy"])
def test_an_order_decides_whatever_is_drawn(order) -> None:
    matcher = IntermediateStateMatcher(PROCESS, num_steps=(STEPS,), order=order)
    rollout = matcher(student, (64, LENGTH), generator=seeded(0))
    first = rollout.steps[0].x_s != MASK
    assert bool((first == first[:1]).all())
    assert first.sum(1).tolist() == [2] * 64


def test_what_follows_an_end_is_in_no_mask() -> None:
    end = EndOfSequence(0)
    x = torch.tensor([[0, 1, 0, 2, 1], [0, 2, 1, 1, 2], [0, 0, 1, 2, 0]])
    generated = torch.tensor([[False, True, True, True, True]] * 2 + [[False, True, True, True, False]])
    tokens, mask = end.cut(x, generated)
    assert tokens.tolist() == [[0, 1, 0, 0, 0], [0, 2, 1, 1, 2], [0, 0, 0, 0, 0]]
    assert mask.tolist() == [[False, True, True, False, False], [False, *[True] * 4], [False, True, *[False] * 3]]
    rollout = IntermediateStateMatcher(PROCESS, num_steps=(2,), end_token_id=0)(
        student, (64, LENGTH), generator=seeded(0)
    )
    for row, counted in zip(rollout.sequences.tolist(), rollout.loss_mask.tolist(), strict=True):
        length = row.index(0) + 1 if 0 in row else LENGTH
        assert counted == [i < length for i in range(LENGTH)]
    assert float(rollout.num_tokens()) == float(rollout.loss_mask.sum())


@pytest.mark.parametrize(
    ("choices", "error", "value"),
    [
        ({"order": "confidence"}, ValueError, "confidence"),
        ({"order": "luck"}, ValueError, "luck"),
        ({"order": "margin", "branching": True}, ValueError, "branching"),
        ({"temperature": 0.0}, ValueError, "0"),
        ({"temperature": "hot"}, TypeError, "hot"),
        ({"end_token_id": -1}, ValueError, "-1"),
        ({"end_token_id": 1, "end_policy": "go on"}, ValueError, "go on"),
        ({"end_token_id": MASK, "end_policy": "forbidden"}, ValueError, "3"),
    ],
)
def test_choices_without_a_meaning_are_refused(choices, error, value) -> None:
    with pytest.raises(error, match=value):
        IntermediateStateMatcher(PROCESS, **choices)
