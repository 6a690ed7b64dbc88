from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from discrete_distill.evaluation import (
    corpus_entropy,
    distinct_n,
    measure_diversity,
    overlap_n,
    repetition_n,
    sample_entropy,
    self_bleu,
)

Rows = list[list[int]]
rows_of_tokens = st.integers(1, 8).flatmap(
    lambda length: st.lists(st.lists(st.integers(0, 3), min_size=length, max_size=length), min_size=1, max_size=6)
)


def entropy_of(tokens: list[int]) -> float:
    return -sum(c / len(tokens) * math.log(c / len(tokens)) for c in Counter(tokens).values())


def grams(row: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]


@settings(deadline=None)
@given(rows_of_tokens)
def test_entropies_are_those_of_counts(rows: Rows) -> None:
    tokens = torch.tensor(rows)
    assert sample_entropy(tokens).tolist() == pytest.approx([entropy_of(row) for row in rows], abs=1e-12)
    assert corpus_entropy(tokens) == pytest.approx(entropy_of([t for row in rows for t in row]), abs=1e-12)


@settings(deadline=None)
@given(rows_of_tokens, st.data())
def test_ngram_figures_are_those_of_sets(rows: Rows, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(rows[0])))
    tokens = torch.tensor(rows)
    everything = [gram for row in rows for gram in grams(row, n)]
    assert distinct_n(tokens, n) == pytest.approx(len(set(everything)) / len(everything))
    repeated = [1 - len(set(grams(row, n))) / len(grams(row, n)) for row in rows]
    assert repetition_n(tokens, n).tolist() == pytest.approx(repeated)
    overlap = []
    for i, row in enumerate(rows):
        others = {gram for j, other in enumerate(rows) if j != i for gram in grams(other, n)}
        overlap.append(sum(gram in others for gram in grams(row, n)) / len(grams(row, n)))
    assert overlap_n(tokens, n).tolist() == pytest.approx(overlap)


def test_collapse_across_samples_shows_in_the_corpus_and_not_in_the_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    free = torch.stack([torch.randperm(1000, generator=generator)[:32] for _ in range(50)])
    collapsed = free[:1].repeat(50, 1)
    assert sample_entropy(free).tolist() == pytest.approx([math.log(32)] * 50)
    assert sample_entropy(collapsed).tolist() == pytest.approx([math.log(32)] * 50)
    assert corpus_entropy(collapsed) == pytest.approx(math.log(32))
    assert corpus_entropy(free) > math.log(32) + 2.5
    assert overlap_n(collapsed, 4).tolist() == [1.0] * 50
    assert float(overlap_n(free, 4).max()) == 0.0


def test_large_ids_and_long_ngrams_are_told_apart() -> None:
    row = torch.arange(40) * 10**16
    rows = torch.stack([row, row.flip(0)])
    assert distinct_n(rows, 30) == 1.0
    assert overlap_n(rows, 2).tolist() == [0.0, 0.0]


def test_the_report_holds_every_figure_and_is_fit_for_json() -> None:
    rows = torch.tensor([[1, 2, 1, 2], [3, 3, 3, 3]])
    report = measure_diversity(rows, orders=(1, 2, 9))
    assert (report.num_samples, report.length) == (2, 4)
    assert report.entropy == pytest.approx(math.log(2) / 2)
    assert report.distinct == {1: 3 / 8, 2: 3 / 6}
    assert report.repetition == {1: pytest.approx((0.5 + 0.75) / 2), 2: pytest.approx((1 / 3 + 2 / 3) / 2)}
    assert report.overlap == {1: 0.0, 2: 0.0}
    assert json.loads(json.dumps(asdict(report)))["corpus_entropy"] == report.corpus_entropy


def test_what_cannot_be_counted_is_refused() -> None:
    rows = torch.tensor([[1, 2, 3]])
    for n in (0, 4):
        with pytest.raises(ValueError, match=str(n)):
            distinct_n(rows, n)
    with pytest.raises(ValueError, match=r"\[N, L\]"):
        sample_entropy(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"\[N, L\]"):
        corpus_entropy(torch.zeros(0, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="n must be"):
        measure_diversity(rows, orders=(0,))


def test_numbers_are_no_samples() -> None:
    for figure in (measure_diversity, sample_entropy, corpus_entropy, self_bleu):
        with pytest.raises(TypeError, match="float32"):
            figure(torch.full((3, 4), float("nan")))
