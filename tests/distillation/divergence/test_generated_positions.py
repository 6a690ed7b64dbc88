"""Given positions and broken log-ratios: what the estimator of the integral KL does not read, and what it refuses."""

import pytest
import torch
from enumerated_paths import seeded
from torch import Tensor

from discrete_distill.distillation.divergence import LogRatio, ScoreFunctionIntegralKL
from discrete_distill.distillation.rewards import LogRatioReward, RunningMean
from discrete_distill.process import MaskedDiffusion


@pytest.mark.parametrize("by", ["count", "parts"])
def test_shared_masks_leave_every_rows_own_given_positions(by) -> None:
    """Rows of a group with different prompts: what is given in one may move in another."""
    generation_mask = torch.rand(8, 6, generator=seeded(3)) < 0.6
    x = torch.randint(5, (8, 6), generator=seeded(0))
    hidden = torch.zeros_like(generation_mask)

    def ratio(x_t, t, *, generation_mask=None, **_):
        assert torch.equal(x_t[~generation_mask], x[~generation_mask])
        hidden.logical_or_(x_t == 5)
        return LogRatio(torch.zeros(x_t.shape), torch.zeros(len(x_t)))

    estimator = ScoreFunctionIntegralKL(MaskedDiffusion(5), ratio, by=by, corruptions=6, shared_masks=True)
    estimator(x, torch.zeros(x.shape), group_size=4, generation_mask=generation_mask, generator=seeded(1))
    assert torch.equal(hidden, generation_mask)


CREDITS = [{"credit": "sequence"}, {"credit": "token"}, {"credit": "token", "window": 3}]


@pytest.mark.parametrize("credit", CREDITS, ids=str)
@pytest.mark.parametrize("baseline", ["group", "leave_one_out", "batch", "none"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_given_positions_change_no_coefficient(credit, baseline, scale) -> None:
    """Two groups of generated tokens behind prompts, before padding, and beside rows that are given throughout."""
    process, inner, wide = MaskedDiffusion(5), (8, 5), (12, 17)
    ratio, scores = (torch.randn(inner, generator=seeded(seed), dtype=torch.float64) for seed in (0, 1))
    estimator = ScoreFunctionIntegralKL(process, lambda *_: None, baseline=baseline, scale=scale, **credit)

    def coefficients_of(values: Tensor, generation_mask: Tensor, per_sequence: Tensor) -> Tensor:
        leaf = (
            torch.zeros(generation_mask.shape, dtype=torch.float64)
            .masked_scatter(generation_mask, scores)
            .requires_grad_()
        )
        judged = LogRatio(values, per_sequence)
        t = torch.full((len(generation_mask),), 0.5, dtype=torch.float64)
        out = estimator.from_log_ratio(judged, t, leaf, group_size=4, generation_mask=generation_mask)
        return torch.autograd.grad(out.loss * len(generation_mask), leaf)[0]

    expected = coefficients_of(ratio, torch.ones(inner, dtype=torch.bool), ratio.sum(1))
    generation_mask = torch.zeros(wide, dtype=torch.bool)
    generation_mask[:8, 7:12] = True
    strange = torch.full(wide, float("nan"), dtype=torch.float64).masked_scatter(generation_mask, ratio)
    per_sequence = torch.cat((ratio.sum(1), torch.full((4,), 1e6, dtype=torch.float64)))
    actual = coefficients_of(strange, generation_mask, per_sequence)
    torch.testing.assert_close(actual[generation_mask].view(inner), expected)


@pytest.mark.parametrize("credit", CREDITS[:2], ids=str)
def test_a_log_ratio_that_is_not_finite_is_named_and_may_be_clipped(credit) -> None:
    values = torch.zeros(4, 3)
    values[2, 1] = float("inf")
    ratio = LogRatio(values, values.sum(1))
    for reward, refused in ((LogRatioReward(), True), (LogRatioReward(8.0), False)):
        estimator = ScoreFunctionIntegralKL(MaskedDiffusion(5), lambda *_: ratio, reward=reward, **credit)
        call = lambda: estimator.from_log_ratio(ratio, torch.full((4,), 0.5), torch.zeros(4, 3), group_size=2)  # noqa: B023, E731
        if refused:
            with pytest.raises(ValueError, match="2"):
                call()
        else:
            assert bool(call().advantages.isfinite().all())


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_an_empty_batch_is_refused(shape) -> None:
    estimator = ScoreFunctionIntegralKL(MaskedDiffusion(5), lambda *_: None)
    with pytest.raises(ValueError, match="0"):
        estimator(torch.zeros(shape, dtype=torch.long), torch.zeros(shape), group_size=2)


def test_the_running_mean_of_an_estimator_is_part_of_its_state() -> None:
    made = [ScoreFunctionIntegralKL(MaskedDiffusion(5), lambda *_: None, baseline=RunningMean()) for _ in range(2)]
    ratio = LogRatio(torch.ones(4, 3), torch.ones(4))
    made[0].from_log_ratio(ratio, torch.full((4,), 0.5), torch.zeros(4, 3))
    made[1].load_state_dict(made[0].state_dict())
    assert float(made[1].baseline.value) == float(made[0].baseline.value) == -1.0
    with pytest.raises(ValueError, match="leave_one_out"):
        ScoreFunctionIntegralKL(MaskedDiffusion(5), lambda *_: None).load_state_dict(made[0].state_dict())
