from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from discrete_distill.evaluation import (
    Estimate,
    Frontier,
    FrontierPoint,
    TokenNats,
    compare_at_entropy,
    mean_figures,
    measure_frontier,
    measure_frontier_around,
    sample_entropy,
)
from discrete_distill.evaluation.frontier import interpolate


class OneNatAToken:
    name = "flat"

    def token_nats(self, sequences_BL: Tensor) -> TokenNats:
        return TokenNats(torch.ones(sequences_BL.shape), torch.ones_like(sequences_BL, dtype=torch.bool))


class IdJudge:
    """Prices token k at k nats."""

    name = "ids"

    def token_nats(self, sequences_BL: Tensor) -> TokenNats:
        return TokenNats(sequences_BL.float(), torch.ones_like(sequences_BL, dtype=torch.bool))


def draw(temperature: float, seed: int) -> Tensor:
    """More temperature, more different tokens: uniform on ``round(4 temperature)`` of them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, round(4 * temperature), (6, 16), generator=generator)


def frontier_of(
    curves: dict[int, list[tuple[float, float]]], method: str = "m", judge: str = "j", num_samples: int = 4
) -> Frontier:
    """From (entropy, nats) pairs by seed, at temperatures 1, 2, ..."""
    points = tuple(
        FrontierPoint(
            temperature=float(index + 1),
            seed=seed,
            entropy=entropy,
            corpus_entropy=entropy + 1.0,
            nats_per_token=nats,
            standard_error=0.1,
        )
        for seed, curve in curves.items()
        for index, (entropy, nats) in enumerate(curve)
    )
    return Frontier(method=method, judge=judge, precision="fp32", num_samples=num_samples, length=16, points=points)


def test_every_point_is_measured_with_its_own_temperature_and_seed() -> None:
    frontier = measure_frontier(
        draw,
        IdJudge(),
        method="uniform",
        temperatures=(0.5, 2.0),
        seeds=(3, 1),
        precision="fp64",
    )
    seen = frontier.points
    assert [(p.temperature, p.seed) for p in seen] == [(0.5, 3), (0.5, 1), (2.0, 3), (2.0, 1)]
    assert (frontier.judge, frontier.precision, frontier.num_samples, frontier.length) == (
        "ids",
        "fp64",
        6,
        16,
    )
    for point in seen:
        ids = draw(point.temperature, point.seed)
        assert point.nats_per_token == pytest.approx(float(ids.double().mean()))
        assert point.entropy == pytest.approx(float(sample_entropy(ids).mean()))
        assert point.corpus_entropy > point.entropy
        assert point.perplexity == pytest.approx(math.exp(point.nats_per_token))


knots = st.dictionaries(st.integers(0, 400), st.floats(-9, 9), min_size=1, max_size=8)


@settings(deadline=None)
@given(knots, st.integers(0, 400), st.randoms(use_true_random=False))
def test_interpolation_is_piecewise_linear_and_never_beyond_the_ends(
    knots: dict[int, float], at: int, order: object
) -> None:
    xs = sorted(knots)
    shuffled = list(xs)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    value = interpolate([x / 100 for x in shuffled], [knots[x] for x in shuffled], at / 100)
    if xs[0] <= at <= xs[-1]:
        expected = np.interp(at / 100, [x / 100 for x in xs], [knots[x] for x in xs])
        assert value == pytest.approx(expected, abs=1e-9)
    else:
        assert value is None


def test_points_of_equal_entropy_are_averaged() -> None:
    assert interpolate([1.0, 1.0, 3.0], [2.0, 4.0, 5.0], 1.0) == pytest.approx(3.0)
    assert interpolate([1.0, 1.0, 3.0], [2.0, 4.0, 5.0], 2.0) == pytest.approx(4.0)


def test_a_reading_is_the_mean_over_the_curves_of_the_seeds() -> None:
    frontier = frontier_of({0: [(4.0, 2.0), (5.0, 4.0)], 1: [(4.2, 2.0), (5.2, 3.0)], 2: [(5.0, 4.5), (4.0, 3.5)]})
    reading = frontier.read(4.5)
    by_hand = [3.0, 2.3, 4.0]
    assert reading.nats_by_seed == pytest.approx(by_hand)
    assert reading.nats_per_token == pytest.approx(statistics.fmean(by_hand))
    assert reading.perplexity == pytest.approx(math.exp(statistics.fmean(by_hand)))
    assert reading.standard_error == pytest.approx(statistics.stdev(by_hand) / math.sqrt(3))
    assert reading.spread == pytest.approx(1.7)
    assert reading.within_range
    assert reading.note == ""


@pytest.mark.parametrize(("entropy", "remedy"), [(5.1, "higher"), (4.1, "lower")])
def test_a_frontier_is_not_extended(entropy: float, remedy: str) -> None:
    reading = frontier_of({0: [(4.0, 2.0), (5.0, 4.0)], 1: [(4.2, 2.0), (5.2, 3.0)]}).read(entropy)
    assert not reading.within_range
    assert (reading.nats_per_token, reading.perplexity, reading.standard_error, reading.spread) == (None,) * 4
    assert [nats is None for nats in reading.nats_by_seed].count(True) == 1
    assert f"{entropy:.3f} is outside" in reading.note
    assert "4.200 to 5.000" in reading.note
    assert f"add {remedy} temperatures" in reading.note


def test_the_ends_themselves_are_in_range() -> None:
    frontier = frontier_of({0: [(4.0, 2.0), (5.0, 4.0)]})
    assert frontier.read(4.0).nats_per_token == 2.0
    assert frontier.read(5.0).nats_per_token == 4.0


def test_one_seed_has_no_standard_error() -> None:
    frontier = frontier_of({0: [(4.0, 2.0), (5.0, 4.0)]})
    assert frontier.read(4.5).standard_error is None
    assert frontier.means()[0].nats_error is None


def test_means_over_seeds_by_temperature() -> None:
    first, second = frontier_of({0: [(4.0, 2.0), (5.0, 4.0)], 7: [(4.2, 3.0), (5.2, 5.0)]}).means()
    assert (first.temperature, second.temperature) == (1.0, 2.0)
    assert (first.entropy, first.nats_per_token) == pytest.approx((4.1, 2.5))
    assert (first.entropy_error, first.nats_error) == pytest.approx((0.1, 0.5))
    assert second.nats_per_token == pytest.approx(4.5)


def test_a_frontier_survives_json() -> None:
    frontier = frontier_of({0: [(4.0, 2.0)], 1: [(4.2, 2.0)]})
    assert Frontier.from_dict(json.loads(json.dumps(frontier.to_dict()))) == frontier


def test_methods_are_compared_at_equal_entropy() -> None:
    teacher = frontier_of({0: [(4.0, 3.0), (5.0, 5.0)], 1: [(4.0, 3.2), (5.0, 5.2)]}, method="teacher")
    student = frontier_of({0: [(4.0, 2.0), (5.0, 4.0)], 1: [(4.0, 2.6), (5.0, 4.6)]}, method="student")
    log_ratio_output = compare_at_entropy(student, teacher, 4.5)
    assert log_ratio_output.log_ratio == pytest.approx(3.3 - 4.1)
    assert log_ratio_output.ratio == pytest.approx(math.exp(-0.8))
    assert log_ratio_output.standard_error == pytest.approx(math.hypot(0.1, 0.3))
    assert log_ratio_output.note == ""
    assert str(log_ratio_output) == (
        "student: 0.449 times the perplexity of teacher, at an entropy of 4.500 nats (standard error 31.6%)"
    )


def test_a_comparison_out_of_range_gives_no_ratio_and_says_whose_fault_it_is() -> None:
    teacher = frontier_of({0: [(4.0, 3.0), (5.0, 5.0)]}, method="teacher")
    student = frontier_of({0: [(4.0, 3.0), (4.4, 5.0)]}, method="student")
    log_ratio_output = compare_at_entropy(student, teacher, 4.5)
    assert (log_ratio_output.ratio, log_ratio_output.log_ratio, log_ratio_output.standard_error) == (None, None, None)
    assert str(log_ratio_output) == log_ratio_output.note
    assert log_ratio_output.note.startswith("student:")
    assert "teacher" not in log_ratio_output.note


@pytest.mark.parametrize("other", [{"judge": "k"}, {"num_samples": 5}])
def test_what_was_measured_differently_is_not_compared(other: dict[str, object]) -> None:
    curve = {0: [(4.0, 3.0), (5.0, 5.0)]}
    with pytest.raises(ValueError, match="cannot be compared"):
        compare_at_entropy(frontier_of(curve), frontier_of(curve, **other), 4.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"temperatures": (), "seeds": (0,)}, {"temperatures": (1.0,), "seeds": (0, 0)}])
def test_temperatures_and_seeds_are_one_or_more_different_values(
    settings: dict[str, tuple[float, ...]],
) -> None:
    with pytest.raises(ValueError, match="different values"):
        measure_frontier(draw, OneNatAToken(), method="m", **settings)  # type: ignore[arg-type]


def test_points_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 4\) and \(2, 4\)"):
        measure_frontier(
            lambda temperature, seed: torch.zeros(seed, 4, dtype=torch.long),
            OneNatAToken(),
            method="m",
            temperatures=(1.0,),
            seeds=(1, 2),
        )


def test_samples_with_masks_left_are_refused() -> None:
    with pytest.raises(ValueError, match="still masks"):
        measure_frontier(draw, OneNatAToken(), method="m", temperatures=(1.0,), seeds=(0,), mask_token_id=1)


def test_an_entropy_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="finite entropy, got nan"):
        frontier_of({0: [(4.0, 2.0)]}).read(float("nan"))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused_before_anything_is_drawn(temperature: float) -> None:
    drawn: list[float] = []

    def sample(temperature: float, seed: int) -> Tensor:
        drawn.append(temperature)
        return draw(1.0, seed)

    with pytest.raises(ValueError, match=str(temperature)):
        measure_frontier(sample, IdJudge(), method="m", temperatures=(1.0, temperature), seeds=(0,))
    assert not drawn


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (2, 3, 4)])
def test_samples_of_no_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[N, L\]"):
        measure_frontier(
            lambda t, s: torch.zeros(shape, dtype=torch.long), IdJudge(), method="m", temperatures=(1.0,), seeds=(0,)
        )


def test_a_frontier_without_points_has_no_reading() -> None:
    empty = Frontier(method="m", judge="j", precision="fp32", num_samples=1, length=1, points=())
    with pytest.raises(ValueError, match="no points"):
        empty.read(1.0)


def test_a_perplexity_beyond_all_numbers_is_infinite() -> None:
    reading = frontier_of({0: [(1.0, 800.0), (2.0, 800.0)]}).read(1.5)
    assert reading.perplexity == math.inf


def test_samples_of_different_prompts_are_not_compared_and_prompts_are_left_out() -> None:
    """Two prompts, each continued twice by the same token: within a prompt all that was generated agrees."""
    samples = torch.tensor([[7, 0, 1], [7, 0, 1], [7, 2, 3], [7, 2, 3]])
    prompts = {"groups_N": torch.tensor([0, 0, 1, 1]), "generation_mask_NL": torch.tensor([[False, True, True]] * 4)}
    fixed = {"method": "m", "temperatures": (1.0,), "seeds": (0,)}
    # Of six pairs two agree at all three positions, and four at the prompt's.
    for more, expected in ((prompts, 1.0), ({}, 10 / 18)):
        found = measure_frontier(lambda temperature, seed: samples, IdJudge(), **fixed, **more)
        assert found.points[0].diversity["agreement"].value == pytest.approx(expected)
    around = measure_frontier_around(
        float(sample_entropy(samples).mean()),
        lambda temperature, seed: samples,
        IdJudge(),
        method="m",
        seeds=(0,),
        **prompts,
    )
    assert around.points[0].diversity["agreement"].value == 1.0


def test_means_of_figures_have_the_error_of_a_mean() -> None:
    sets = [{"a": Estimate(1.0, 0.3), "b": Estimate(2.0, None)}, {"a": Estimate(2.0, 0.4), "b": Estimate(4.0, 0.1)}]
    assert mean_figures(sets) == {"a": Estimate(1.5, pytest.approx(0.25)), "b": Estimate(3.0, None)}
    assert mean_figures([*sets, {"a": Estimate(0.0, 0.0)}]).keys() == {"a"}
    assert mean_figures([]) == {}
