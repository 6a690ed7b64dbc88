"""Self-BLEU against its definition, and its ends."""

import math
from collections import Counter

import pytest
import torch

from discrete_distill.evaluation import self_bleu


def plainly(rows: list[list[int]], order: int) -> float:
    """Every sample against every other, without short cuts."""

    def grams(row: list[int], n: int) -> Counter:
        return Counter(tuple(row[i : i + n]) for i in range(len(row) - n + 1))

    scores = []
    for index, row in enumerate(rows):
        others = rows[:index] + rows[index + 1 :]
        log = 0.0
        for n in range(1, order + 1):
            counts = grams(row, n)
            matches = sum(min(c, max(grams(other, n)[g] for other in others)) for g, c in counts.items())
            log += math.log(max(matches, 0.5) / sum(counts.values())) / order
        scores.append(math.exp(log))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_it_is_the_mean_of_bleu_against_all_others(order, seeded) -> None:
    samples = torch.randint(4, (7, 12), generator=seeded(order))
    assert self_bleu(samples, order=order) == pytest.approx(plainly(samples.tolist(), order), abs=1e-12)


def test_copies_score_one_and_strangers_next_to_nothing() -> None:
    assert self_bleu(torch.arange(10).repeat(3, 1)) == pytest.approx(1.0)
    strangers = self_bleu(torch.arange(30).view(3, 10), order=2)
    assert strangers == pytest.approx(math.sqrt(0.5 / 10 * 0.5 / 9))
    loops = torch.tensor([[1, 1, 1, 1], [1, 2, 3, 4]])  # Three of the four 1s are not found elsewhere.
    assert self_bleu(loops, order=1) == pytest.approx(0.25)


@pytest.mark.parametrize(("shape", "order"), [((1, 5), 2), ((3, 5), 6), ((3, 5), 0)])
def test_what_has_no_self_bleu_is_refused(shape, order) -> None:
    with pytest.raises(ValueError, match=r"two samples|order"):
        self_bleu(torch.zeros(shape, dtype=torch.long), order=order)
