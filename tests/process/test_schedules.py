"""Schedules: what the mathematics of ``alpha(t)`` demands of every one of them."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from scipy.integrate import quad

from discrete_distill.process import (
    CosineSchedule,
    GeometricSchedule,
    LinearSchedule,
    LogLinearSchedule,
    MaskingSchedule,
    PolynomialSchedule,
)

SCHEDULES = [
    LogLinearSchedule(),
    LogLinearSchedule(eps=0.0),
    LinearSchedule(),
    CosineSchedule(),
    PolynomialSchedule(2.0),
    PolynomialSchedule(0.5),
    GeometricSchedule(),
    GeometricSchedule(sigma_min=1e-2, sigma_max=5.0),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
times = st.floats(0.0, 1.0)
inner_times = st.floats(1e-3, 1.0 - 1e-3)


def double(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@every_schedule
@given(t=times, s=times)
def test_alpha_is_a_probability_that_strictly_decreases(schedule: MaskingSchedule, t: float, s: float) -> None:
    early, late = sorted((t, s))
    alpha_early, alpha_late = schedule.alpha(double(early)).item(), schedule.alpha(double(late)).item()
    assert 0.0 <= alpha_late <= alpha_early <= 1.0
    if late - early > 1e-6:
        assert alpha_late < alpha_early


@every_schedule
@given(t=inner_times)
def test_dalpha_is_the_derivative_that_autograd_finds(schedule: MaskingSchedule, t: float) -> None:
    time = double(t).requires_grad_()
    (slope,) = torch.autograd.grad(schedule.alpha(time), time)
    assert schedule.dalpha(time.detach()).item() == pytest.approx(slope.item(), rel=1e-9)
    assert slope < 0.0


@every_schedule
@given(t=times)
def test_inverse_undoes_alpha(schedule: MaskingSchedule, t: float) -> None:
    assert schedule.inverse(schedule.alpha(double(t))).item() == pytest.approx(t, abs=1e-7)


@every_schedule
@given(fraction=st.floats(1e-6, 1.0 - 1e-6))
def test_alpha_undoes_inverse_within_its_range(schedule: MaskingSchedule, fraction: float) -> None:
    low, high = schedule.alpha(double(1.0)).item(), schedule.alpha(double(0.0)).item()
    alpha = low + fraction * (high - low)
    assert schedule.alpha(schedule.inverse(double(alpha))).item() == pytest.approx(alpha, abs=1e-10)


@every_schedule
@given(t=inner_times)
def test_sigma_is_minus_log_alpha(schedule: MaskingSchedule, t: float) -> None:
    expected = -math.log(schedule.alpha(double(t)).item())
    assert schedule.sigma(double(t)).item() == pytest.approx(expected, rel=1e-9)


@every_schedule
@given(t=inner_times)
def test_elbo_weight_is_the_slope_of_the_log_masked_fraction(schedule: MaskingSchedule, t: float) -> None:
    time = double(t).requires_grad_()
    (slope,) = torch.autograd.grad(torch.log(1.0 - schedule.alpha(time)), time)
    assert schedule.elbo_weight(time.detach()).item() == pytest.approx(slope.item(), rel=1e-8)


@every_schedule
def test_elbo_weight_integrates_to_the_log_ratio_of_masked_fractions(schedule: MaskingSchedule) -> None:
    integral, _ = quad(lambda t: schedule.elbo_weight(double(t)).item(), 0.1, 0.9, epsabs=1e-10)
    masked = 1.0 - schedule.alpha(torch.tensor([0.1, 0.9], dtype=torch.float64))
    assert integral == pytest.approx(math.log(masked[1] / masked[0]), abs=1e-8)


@every_schedule
def test_methods_are_elementwise_and_keep_shape_and_dtype(schedule: MaskingSchedule) -> None:
    t = torch.linspace(0.1, 0.9, 6).reshape(2, 3)
    for method in (schedule.alpha, schedule.dalpha, schedule.inverse, schedule.sigma, schedule.elbo_weight):
        out = method(t)
        assert out.shape == t.shape
        assert out.dtype == torch.float32
        torch.testing.assert_close(out[1, 2], method(t[1, 2]))


def test_the_geometric_elbo_weight_keeps_its_precision_where_almost_nothing_is_masked() -> None:
    schedule = GeometricSchedule(sigma_min=1e-6)
    t = torch.tensor([0.0, 0.05, 0.1])
    torch.testing.assert_close(schedule.elbo_weight(t).double(), schedule.elbo_weight(t.double()), rtol=1e-5, atol=0)


def test_the_log_linear_schedule_is_that_of_mdlm() -> None:
    t = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
    schedule = LogLinearSchedule()
    torch.testing.assert_close(schedule.sigma(t), -torch.log1p(-(1.0 - 1e-3) * t))
    assert schedule.alpha(t[-1]).item() == pytest.approx(1e-3)


def test_special_cases_coincide() -> None:
    t = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
    torch.testing.assert_close(PolynomialSchedule(1.0).alpha(t), LinearSchedule().alpha(t))
    torch.testing.assert_close(LogLinearSchedule(eps=0.0).alpha(t), LinearSchedule().alpha(t))


def test_the_cosine_schedule_has_masked_sin_of_the_time() -> None:
    t = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
    torch.testing.assert_close(1.0 - CosineSchedule().alpha(t), torch.sin(0.5 * math.pi * t))


def test_geometric_noise_runs_from_sigma_min_to_sigma_max() -> None:
    ends = GeometricSchedule(sigma_min=0.1, sigma_max=7.0).sigma(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([0.1, math.sqrt(0.7), 7.0]))


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: LogLinearSchedule(eps=1.0), "1.0"),
        (lambda: LogLinearSchedule(eps=-0.1), "-0.1"),
        (lambda: PolynomialSchedule(0.0), "0.0"),
        (lambda: PolynomialSchedule(float("nan")), "nan"),
        (lambda: GeometricSchedule(sigma_min=0.0), "0.0"),
        (lambda: GeometricSchedule(sigma_min=3.0, sigma_max=2.0), r"3\.0.*2\.0"),
    ],
)
def test_impossible_parameters_are_refused_by_value(make, value: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=value):
        make()
