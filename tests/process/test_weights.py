"""Weights over time."""

import pytest
import torch

from discrete_distill.process import ConstantWeight, CosineSchedule, ElboWeight, LogLinearSchedule

T = torch.linspace(0.001, 0.999, 97)


def test_the_elbo_weight_is_that_of_its_schedule() -> None:
    for schedule in (LogLinearSchedule(), CosineSchedule()):
        assert torch.equal(ElboWeight(schedule)(T), schedule.elbo_weight(T))


def test_the_elbo_weight_is_clipped_to_its_bounds_and_only_there() -> None:
    free, clipped = ElboWeight()(T), ElboWeight(low=1.5, high=10.0)(T)
    assert clipped.min() == 1.5
    assert clipped.max() == 10.0
    inside = (free > 1.5) & (free < 10.0)
    assert inside.sum() > 10
    assert torch.equal(clipped[inside], free[inside])


def test_the_log_linear_weight_is_one_over_time() -> None:
    torch.testing.assert_close(ElboWeight(LogLinearSchedule())(T), 1.0 / T, rtol=1e-4, atol=0.0)


def test_a_constant_weight_is_constant_in_any_shape() -> None:
    assert torch.equal(ConstantWeight(0.25)(torch.zeros(2, 3)), torch.full((2, 3), 0.25))


def test_weights_that_are_not_positive_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.0"):
        ConstantWeight(0.0)
    with pytest.raises(ValueError, match=r"2\.0.*1\.0"):
        ElboWeight(low=2.0, high=1.0)
