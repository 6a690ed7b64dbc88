"""Figures between samples against plain counting; standard errors against deletion of each sample."""

import math
from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from discrete_distill.evaluation import (
    NGramJudge,
    generative_perplexity,
    measure_between_samples,
    nearest_overlap,
    ngram_entropy,
    reverse_perplexity,
    sample_agreement,
)

Rows = list[list[int]]


@st.composite
def grouped_samples(draw: st.DrawFn) -> tuple[Rows, list[int], list[list[bool]]]:
    count, length = draw(st.integers(3, 6)), draw(st.integers(1, 5))
    tokens = st.lists(st.integers(0, 2), min_size=length, max_size=length)
    flags = st.lists(st.booleans(), min_size=length, max_size=length)
    return (
        draw(st.lists(tokens, min_size=count, max_size=count)),
        draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)),
        draw(st.lists(flags, min_size=count, max_size=count)),
    )


def plain_agreement(rows: Rows, groups: list[int], mask: list[list[bool]]) -> float | None:
    equal = pairs = 0
    for i, j in combinations(range(len(rows)), 2):
        for position in range(len(rows[0])):
            if groups[i] == groups[j] and mask[i][position] and mask[j][position]:
                pairs += 1
                equal += rows[i][position] == rows[j][position]
    return equal / pairs if pairs else None


def without(items: list, index: int) -> list:
    return items[:index] + items[index + 1 :]


def plain_jackknife(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt((len(values) - 1) / len(values) * math.fsum((value - mean) ** 2 for value in values))


@given(grouped_samples())
def test_agreement_is_that_of_all_pairs(given_samples: tuple[Rows, list[int], list[list[bool]]]) -> None:
    rows, groups, mask = given_samples
    arguments = {"groups_N": torch.tensor(groups), "generation_mask_NL": torch.tensor(mask)}
    expected = plain_agreement(rows, groups, mask)
    if expected is None:
        with pytest.raises(ValueError, match="two samples"):
            sample_agreement(torch.tensor(rows), **arguments)
        return
    found = sample_agreement(torch.tensor(rows), **arguments)
    assert found.value == pytest.approx(expected)
    deleted = [plain_agreement(*(without(each, i) for each in (rows, groups, mask))) for i in range(len(rows))]
    if None in deleted:
        assert found.standard_error is None
    else:
        assert found.standard_error == pytest.approx(plain_jackknife([each or 0.0 for each in deleted]), abs=1e-12)


@given(grouped_samples(), st.integers(1, 3))
def test_the_nearest_sample_is_the_one_that_shares_most_ngrams(
    given_samples: tuple[Rows, list[int], list[list[bool]]], n: int
) -> None:
    rows, n = given_samples[0], min(n, len(given_samples[0][0]))
    grams = [{tuple(row[k : k + n]) for k in range(len(row) - n + 1)} for row in rows]
    nearest = [max(len(own & other) for other in without(grams, i)) / len(own) for i, own in enumerate(grams)]
    assert nearest_overlap(torch.tensor(rows), n).value == pytest.approx(math.fsum(nearest) / len(nearest))


def plain_ngram_entropy(rows: Rows, n: int) -> float:
    counts = Counter(tuple(row[k : k + n]) for row in rows for k in range(len(row) - n + 1))
    total = sum(counts.values())
    return -math.fsum(count / total * math.log(count / total) for count in counts.values())


@given(grouped_samples(), st.integers(1, 3))
def test_ngram_entropy_is_that_of_counts(given_samples: tuple[Rows, list[int], list[list[bool]]], n: int) -> None:
    rows, n = given_samples[0], min(n, len(given_samples[0][0]))
    found = ngram_entropy(torch.tensor(rows), n)
    assert found.value == pytest.approx(plain_ngram_entropy(rows, n), abs=1e-12)
    deleted = [plain_ngram_entropy(without(rows, i), n) for i in range(len(rows))]
    assert found.standard_error == pytest.approx(plain_jackknife(deleted), abs=1e-9)


def test_reverse_perplexity_is_that_of_data_under_a_model_of_the_samples(seeded) -> None:
    samples = torch.randint(5, (16, 12), generator=seeded(0))
    data = torch.randint(5, (8, 12), generator=seeded(1))
    judge = NGramJudge(samples, vocab_size=5, order=2)
    found = reverse_perplexity(samples, data, order=2)
    assert found.value == pytest.approx(generative_perplexity(data, judge).nats_per_token)
    assert found.standard_error is not None
    assert found.standard_error > 0.0


def test_data_that_samples_leave_out_raise_reverse_perplexity(seeded) -> None:
    data = torch.randint(6, (32, 12), generator=seeded(0))
    whole, half = torch.randint(6, (32, 12), generator=seeded(1)), torch.randint(3, (32, 12), generator=seeded(2))
    assert reverse_perplexity(half, data).value > reverse_perplexity(whole, data).value + 0.3


def test_the_jackknife_error_of_agreement_is_its_spread_over_sets(seeded) -> None:
    generator, probabilities = seeded(0), torch.tensor([0.7, 0.2, 0.1]).expand(30 * 4, 3)
    sets = [torch.multinomial(probabilities, 1, generator=generator).view(30, 4) for _ in range(400)]
    estimates = [sample_agreement(each) for each in sets]
    values = torch.tensor([each.value for each in estimates])
    errors = torch.tensor([each.standard_error for each in estimates])
    # The spread of 400 draws is known to 3.5%; the jackknife's square is biased upwards by order 1 / N.
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.15)


def test_all_figures_by_name(seeded) -> None:
    samples = torch.randint(4, (6, 8), generator=seeded(0))
    figures = measure_between_samples(samples, samples).figures()
    assert set(figures) == {
        "agreement", "nearest_overlap", "entropy_1", "entropy_2", "entropy_3", "reverse_nats"
    }  # fmt: skip
    assert "reverse_nats" not in measure_between_samples(samples).figures()


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_samples_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="samples"):
        measure_between_samples(torch.zeros(count, 4, dtype=torch.long))
