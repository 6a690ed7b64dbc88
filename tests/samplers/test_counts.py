"""How many masks a step reveals: whole numbers that add up, equal shares dealt out equally."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llada import tokens_of_each_step

from discrete_distill import AncestralSampler, CosineSchedule, GeometricSchedule, LinearSchedule, MaskedDiffusion
from discrete_distill.process import LogLinearSchedule, PolynomialSchedule
from discrete_distill.samplers.counts import dealt_out, hidden_shares, masks_left

AFFINE = [LinearSchedule(), LogLinearSchedule(), LogLinearSchedule(0.2), PolynomialSchedule(1.0)]
OTHERS = [CosineSchedule(), PolynomialSchedule(2.0), GeometricSchedule(), GeometricSchedule(0.1, 3.0)]


@pytest.mark.parametrize("schedule", AFFINE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(st.integers(1, 1500), st.integers(0, 5000))
def test_equal_steps_are_those_of_llada(schedule, dtype, steps, masks) -> None:
    """Also for times that were rounded to fp32, and for a number of steps that divides nothing."""
    times = torch.linspace(1.0, 0.0, steps + 1, dtype=dtype).tolist()
    shares = hidden_shares(MaskedDiffusion(9, schedule), times)
    assert shares == [Fraction(steps - step, steps) for step in range(steps + 1)]
    left = dealt_out(shares, masks)
    assert [before - after for before, after in pairwise(left)] == tokens_of_each_step(masks, steps)
    assert masks_left(shares, masks) == [(steps - step) * masks // steps for step in range(steps + 1)]


def test_more_steps_than_fp32_can_tell_apart_are_equal_too() -> None:
    times = AncestralSampler(MaskedDiffusion(9), num_steps=20_000).times
    left = dealt_out(hidden_shares(MaskedDiffusion(9), times), 50)
    assert left[:51] == list(range(50, -1, -1))


@pytest.mark.parametrize("schedule", AFFINE + OTHERS, ids=str)
@given(st.lists(st.floats(0.001, 1.0), min_size=2, max_size=12, unique=True), st.booleans(), st.integers(0, 400))
def test_any_grid_deals_all_masks_out_within_one_of_their_share(schedule, times, to_the_end, masks) -> None:
    times = sorted(times, reverse=True) + [0.0] * to_the_end
    shares = hidden_shares(MaskedDiffusion(9, schedule), times)
    left = dealt_out(shares, masks)
    assert left[0] == masks
    assert all(before >= after >= 0 for before, after in pairwise(left))
    assert left[-1] == 0 or not to_the_end
    for step, (before, after) in enumerate(pairwise(left)):
        assert abs(before - after - (shares[step] - shares[step + 1]) * masks) < 1
    alpha = schedule.alpha(torch.tensor(times, dtype=torch.float64))
    exact = ((1.0 - alpha) / (1.0 - alpha[0])).tolist()
    if to_the_end:
        exact[-1] = 0.0
    assert [float(share) for share in shares] == pytest.approx(exact, abs=1e-3)


def test_a_grid_that_starts_late_reveals_the_masks_that_are_there() -> None:
    """From 0.5 to 0.25 half of what is masked is revealed, not three quarters."""
    shares = hidden_shares(MaskedDiffusion(9, LinearSchedule()), [0.5, 0.25, 0.0])
    assert shares == [1, Fraction(1, 2), 0]
