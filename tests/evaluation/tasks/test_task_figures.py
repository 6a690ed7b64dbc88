"""Accuracy, accuracy under parallelism and coverage against definitions, simulation and the exact laboratory."""

import math
from fractions import Fraction

import pytest
import torch
from torch import Generator, Tensor

from discrete_distill.evaluation.tasks import (
    BalancedBrackets,
    Permutations,
    Sudoku,
    accuracy,
    accuracy_under_parallelism,
    distinct_expected,
    exact_coverage,
    measure_coverage,
)
from discrete_distill.evaluation.tasks.coverage import distinct_deviation, plug_in_kl_of_uniform
from discrete_distill.exact import DistributionDenoiser, sampler_distribution, uniform_times
from discrete_distill.process import MaskedDiffusion


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (617, 1000)])
def test_the_ends_of_the_interval_are_where_the_score_test_rejects(k: int, n: int) -> None:
    figure = accuracy(torch.arange(n) < k)
    assert figure.value == k / n
    assert figure.standard_error == pytest.approx(math.sqrt(k * (n - k) / n**3))
    for end in {figure.low, figure.high} - {0.0, 1.0}:
        assert abs(k / n - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(1.959964, rel=1e-6)
    assert 0.0 <= figure.low <= figure.value <= figure.high <= 1.0
    assert figure.low < figure.high


def test_accuracy_needs_booleans() -> None:
    with pytest.raises(TypeError, match="bool"):
        accuracy(torch.ones(3))
    with pytest.raises(ValueError, match="shape"):
        accuracy(torch.ones(0, dtype=torch.bool))


def test_accuracy_under_parallelism_is_the_published_sum() -> None:
    weight = math.exp(-3 * (1 - 0.78 / 0.8))
    # In per cent: rho_1 y_1, then trapezoids of weighted accuracies; the point at 0.7 is 10 points below the first.
    expected = 1.0 * 80 + (3.0 - 1.0) * (78 * weight + 80) / 2
    assert accuracy_under_parallelism([3.0, 8.0, 1.0], [0.78, 0.7, 0.8]) == pytest.approx(expected)
    best = 1 * 80 + (3 - 1) * (78 * math.exp(-3 * (1 - 0.78 / 0.9)) + 80 * math.exp(-3 * (1 - 0.8 / 0.9))) / 2
    assert accuracy_under_parallelism([1.0, 3.0], [0.8, 0.78], best_accuracy=0.9) == pytest.approx(best)
    # Without a loss of accuracy it is the area under the curve.
    assert accuracy_under_parallelism([1.0, 9.0], [0.6, 0.6]) == pytest.approx(9 * 60)
    assert accuracy_under_parallelism([2.0], [0.0]) == 0.0


@pytest.mark.parametrize(
    ("rates", "values", "options"),
    [
        ([], [], {}),
        ([1.0], [0.5, 0.5], {}),
        ([1.0, 1.0], [0.5, 0.5], {}),
        ([0.0], [0.5], {}),
        ([1.0], [50.0], {}),
        ([1.0], [0.5], {"best_accuracy": 0.0}),
        ([1.0], [0.5], {"tolerance": -1.0}),
    ],
)
def test_points_that_mean_nothing_are_refused(rates: list, values: list, options: dict) -> None:
    with pytest.raises(ValueError, match=r"must be|needs|must differ"):
        accuracy_under_parallelism(rates, values, **options)


def uniform_sets(n: int, total: int, repeats: int) -> list[Tensor]:
    return list(torch.randint(total, (repeats, n, 1), generator=seeded()))


@pytest.mark.parametrize(("n", "total"), [(1, 5), (30, 12), (10, 100), (300, 40)])
def test_figures_of_a_uniform_sampler_are_expectations_over_its_sets(n: int, total: int) -> None:
    figures = [measure_coverage(samples, total) for samples in uniform_sets(n, total, 400)]
    distinct = torch.tensor([figure.num_distinct for figure in figures]).double()
    error = max(float(distinct.std()) / 20, 1e-9)
    assert abs(float(distinct.mean()) - distinct_expected(n, total)) < 5 * error
    if n > 1:
        assert float(distinct.std()) == pytest.approx(distinct_deviation(n, total), rel=0.25)
    excess = torch.tensor([figure.excess_kl for figure in figures]).double()
    assert abs(float(excess.mean())) < 5 * max(float(excess.std()) / 20, 1e-12)


def test_expectations_hold_where_numbers_are_large() -> None:
    n, total = 10_000, Sudoku(9, mask_token_id=9).num_solutions
    assert total is not None
    assert distinct_expected(n, total) == pytest.approx(n)
    assert n - distinct_expected(n, 28_200_960) == pytest.approx(n * n / 2 / 28_200_960, rel=1e-3)
    assert distinct_deviation(n, 28_200_960) == pytest.approx(n / math.sqrt(2 * 28_200_960), rel=1e-3)
    assert plug_in_kl_of_uniform(n, total) == pytest.approx(math.log(total / n))
    assert plug_in_kl_of_uniform(100_000, 100) == pytest.approx(99 / 200_000, rel=1e-2)
    assert distinct_expected(10**6, 7) == pytest.approx(7)
    assert distinct_deviation(10**6, 7) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("total", [1, 2, 3, 10, 1000, 20_000])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 50, 512])
def test_the_deviation_of_distinct_answers_is_that_of_their_exact_distribution(n: int, total: int) -> None:
    one, two = (max(1 - Fraction(k, total), Fraction(0)) ** n for k in (1, 2))  # not drawn among n
    variance = total * one * (1 - one) + total * (total - 1) * (two - one * one)
    assert distinct_deviation(n, total) == pytest.approx(math.sqrt(variance), rel=1e-6, abs=1e-9)
    assert distinct_expected(5, 1) == 1.0


def test_a_sampler_that_says_few_things_is_found_out() -> None:
    task = Sudoku(6, mask_token_id=6)
    grids = task.sample_solutions(2000, seeded()).sequences
    honest = measure_coverage(grids, task.num_solutions)
    assert abs(honest.num_distinct - honest.distinct_expected) < 5 * honest.distinct_deviation + 1
    copied = measure_coverage(grids[:200].repeat(10, 1), task.num_solutions)
    assert copied.num_distinct == 200
    assert (copied.distinct_expected - copied.num_distinct) / copied.distinct_deviation > 1000
    assert copied.excess_kl == pytest.approx(math.log(10), rel=1e-2)


def test_the_plug_in_divergence_of_one_answer_is_the_logarithm_of_their_number() -> None:
    figure = measure_coverage(torch.zeros(50_000, 4, dtype=torch.long), 24)
    assert figure.kl_from_uniform == pytest.approx(math.log(24))
    assert figure.excess_kl == pytest.approx(math.log(24), abs=1e-3)


def test_more_different_samples_than_right_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="right answers"):
        measure_coverage(torch.arange(5)[:, None], 4)


@pytest.mark.parametrize("task", [Permutations(4, mask_token_id=4), BalancedBrackets(3, mask_token_id=2)])
def test_the_exact_denoiser_covers_everything_one_token_at_a_time_and_less_in_fewer_steps(task) -> None:
    words, length = len(task.symbols), task.length
    uniform = torch.zeros((words,) * length, dtype=torch.float64)
    right = task.sample_solutions(4000, seeded()).sequences.unique(dim=0)
    assert len(right) == task.num_solutions
    uniform[tuple(right.T)] = 1.0 / len(right)
    assert exact_coverage(task, uniform).validity == pytest.approx(1.0)
    assert exact_coverage(task, uniform).kl_from_uniform == pytest.approx(0.0, abs=1e-12)
    process = MaskedDiffusion(task.mask_token_id)
    # Sequences that are wrong have a probability so small that it matters only where nothing right is left.
    smoothed = (1 - 1e-9) * uniform + 1e-9 / uniform.numel()
    denoiser = DistributionDenoiser(smoothed, task.mask_token_id)
    found = [
        exact_coverage(task, sampler_distribution(denoiser, process, uniform_times(steps), length, words))
        for steps in (1, 4, 64)
    ]
    # One step draws every position from its marginal.
    marginals = [uniform.sum([axis for axis in range(length) if axis != position]) for position in range(length)]
    product = math.prod(torch.meshgrid(*marginals, indexing="ij")[position] for position in range(length))
    assert found[0].validity == pytest.approx(float(product[uniform > 0].sum()), rel=1e-5)
    assert found[0].validity < found[1].validity < found[2].validity < 1.0
    one_answer = torch.zeros_like(uniform)
    one_answer[tuple(right[0])] = 1.0
    assert exact_coverage(task, one_answer).validity == 1.0
    assert exact_coverage(task, one_answer).kl_from_uniform == pytest.approx(math.log(task.num_solutions))


def test_exact_coverage_needs_the_shape_of_the_task_and_no_prompts() -> None:
    with pytest.raises(ValueError, match="axes"):
        exact_coverage(Permutations(3, mask_token_id=3), torch.full((3, 3), 1 / 9))
    with pytest.raises(TypeError, match="floating"):
        exact_coverage(Permutations(3, mask_token_id=3), torch.ones(3, 3, 3, dtype=torch.long))
