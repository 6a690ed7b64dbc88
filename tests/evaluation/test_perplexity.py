from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from discrete_distill.evaluation import GenerativePerplexity, TokenNats, generative_perplexity

SKIP = 0


class TableJudge:
    """Prices token k at ``0.1 k`` nats, does not count token 0 and gives it a price that is not a number."""

    name = "table"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def token_nats(self, sequences_BL: Tensor) -> TokenNats:
        self.batches.append(sequences_BL.shape[0])
        nats = 0.1 * sequences_BL.float()
        return TokenNats(nats.masked_fill(sequences_BL == SKIP, float("nan")), sequences_BL != SKIP)


samples = st.integers(1, 5).flatmap(
    lambda length: st.lists(st.lists(st.integers(0, 9), min_size=length, max_size=length), min_size=1, max_size=9)
)


@settings(deadline=None)
@given(rows=samples, batch_size=st.integers(1, 10))
def test_the_mean_is_over_all_counted_tokens_whatever_the_batches(rows: list[list[int]], batch_size: int) -> None:
    rows = [*rows, [7] * len(rows[0])]
    judge = TableJudge()
    log_ratio_output = generative_perplexity(torch.tensor(rows), judge, batch_size=batch_size)
    tokens = [token for row in rows for token in row if token != SKIP]
    assert log_ratio_output.nats_per_token == pytest.approx(0.1 * sum(tokens) / len(tokens), rel=1e-6)
    assert log_ratio_output.num_tokens == len(tokens)
    assert log_ratio_output.num_samples == len(rows) == sum(judge.batches)
    assert log_ratio_output.sample_tokens == tuple(sum(token != SKIP for token in row) for row in rows)


def test_a_long_sample_weighs_more_than_a_short_one_and_batches_do_not() -> None:
    rows = torch.tensor([[9, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    log_ratio_output = generative_perplexity(rows, TableJudge(), batch_size=2)
    assert log_ratio_output.perplexity == pytest.approx(math.exp((0.9 + 8 * 0.1) / 9), rel=1e-6)


def test_the_result_names_judge_and_precision_and_is_fit_for_json() -> None:
    log_ratio_output = generative_perplexity(torch.tensor([[1, 2]]), TableJudge(), precision="fp64")
    saved = json.loads(json.dumps(asdict(log_ratio_output)))
    assert (saved["judge"], saved["precision"], saved["num_samples"]) == ("table", "fp64", 1)


def test_standard_error_of_samples_of_equal_length_is_that_of_their_means() -> None:
    rows = torch.randint(1, 10, (40, 6), generator=torch.Generator().manual_seed(3))
    log_ratio_output = generative_perplexity(rows, TableJudge())
    means = [0.1 * statistics.fmean(row) for row in rows.tolist()]
    assert log_ratio_output.standard_error == pytest.approx(statistics.stdev(means) / math.sqrt(40), rel=1e-5)


def test_standard_error_of_samples_of_unequal_length_agrees_with_the_jackknife() -> None:
    generator = torch.Generator().manual_seed(4)
    rows = torch.randint(1, 10, (300, 8), generator=generator)
    keep = torch.randint(1, 9, (300, 1), generator=generator)
    rows = torch.where(torch.arange(8) < keep, rows, SKIP)
    log_ratio_output = generative_perplexity(rows, TableJudge())
    nats, tokens = log_ratio_output.sample_nats, log_ratio_output.sample_tokens
    left_out = [(sum(nats) - n) / (sum(tokens) - k) for n, k in zip(nats, tokens, strict=True)]
    jackknife = math.sqrt(299 / 300 * sum((x - statistics.fmean(left_out)) ** 2 for x in left_out))
    assert log_ratio_output.standard_error == pytest.approx(jackknife, rel=0.01)


def test_a_single_sample_has_no_standard_error() -> None:
    assert generative_perplexity(torch.tensor([[3, 4]]), TableJudge()).standard_error is None


def test_samples_with_masks_left_are_refused() -> None:
    with pytest.raises(ValueError, match="2 of 4 tokens are still masks"):
        generative_perplexity(torch.tensor([[3, 8], [8, 1]]), TableJudge(), mask_token_id=8)


@pytest.mark.parametrize("rows", [torch.zeros(0, 4, dtype=torch.long), torch.zeros(3, dtype=torch.long)])
def test_samples_of_no_shape_are_refused(rows: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\[N, L\]"):
        generative_perplexity(rows, TableJudge())


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size.*0"):
        generative_perplexity(torch.tensor([[1]]), TableJudge(), batch_size=0)


def test_a_perplexity_of_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="counted no token"):
        generative_perplexity(torch.tensor([[SKIP, SKIP]]), TableJudge())


def test_prices_that_are_not_finite_are_refused() -> None:
    class Broken(TableJudge):
        def token_nats(self, sequences_BL: Tensor) -> TokenNats:
            return TokenNats(torch.full(sequences_BL.shape, float("inf")), sequences_BL != SKIP)

    with pytest.raises(ValueError, match="not finite"):
        generative_perplexity(torch.tensor([[1, 2]]), Broken())


def test_perplexity_is_the_exponential_of_the_mean() -> None:
    log_ratio_output = GenerativePerplexity(
        judge="j", precision="fp32", num_samples=2, num_tokens=4, sample_nats=(3.0, 5.0), sample_tokens=(1, 3)
    )
    assert log_ratio_output.perplexity == pytest.approx(math.exp(2.0))


def test_samples_are_ids_and_no_numbers() -> None:
    with pytest.raises(TypeError, match="float32"):
        generative_perplexity(torch.ones(2, 3), TableJudge())
    with pytest.raises(TypeError, match="list"):
        generative_perplexity([[1, 2]], TableJudge())  # type: ignore[arg-type]


def test_infinities_that_cancel_are_not_finite() -> None:
    class Broken(TableJudge):
        def token_nats(self, sequences_BL: Tensor) -> TokenNats:
            nats = torch.tensor([[float("inf")], [-float("inf")]]).expand(sequences_BL.shape)
            return TokenNats(nats, torch.ones_like(sequences_BL, dtype=torch.bool))

    with pytest.raises(ValueError, match="not finite"):
        generative_perplexity(torch.tensor([[1, 2], [3, 4]]), Broken())


def test_a_judge_that_prices_other_samples_than_it_was_given_is_refused() -> None:
    class Dropping(TableJudge):
        def token_nats(self, sequences_BL: Tensor) -> TokenNats:
            return super().token_nats(sequences_BL[:-1])

    with pytest.raises(ValueError, match="'table'"):
        generative_perplexity(torch.tensor([[1, 2], [3, 4]]), Dropping())


def test_a_perplexity_beyond_all_numbers_is_infinite() -> None:
    log_ratio_output = GenerativePerplexity(
        judge="j", precision="fp32", num_samples=1, num_tokens=1, sample_nats=(1e4,), sample_tokens=(1,)
    )
    assert log_ratio_output.perplexity == math.inf
