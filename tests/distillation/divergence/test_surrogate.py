"""`integral_kl` against the exact gradient, by hand, and against `ScoreFunctionIntegralKL`."""

import math

import pytest
import torch
from enumerated_paths import (
    enumerate_paths,
    expected_gradient,
    gauss_legendre,
    random_distribution,
    random_student,
    seeded,
    student_distribution,
)
from torch import Tensor

from discrete_distill import ExactLogRatio, LogRatioReward, MaskedDiffusion, ScoreFunctionIntegralKL, exact, integral_kl
from discrete_distill.distillation.divergence import LogRatio
from discrete_distill.process import BetaTime, ConstantWeight, ElboWeight


@pytest.mark.parametrize(("baseline", "group_size"), [("none", 1), ("none", 2), ("leave_one_out", 2)])
def test_the_expected_gradient_is_that_of_the_exact_integral_kl(baseline, group_size) -> None:
    """Every path, corruption and group of a student of two steps, fp64; times with a density and a weight."""
    times, process = (1.0, 0.4, 0.0), MaskedDiffusion(2)
    student, teacher = random_student(2, 2, times, seed=5), random_distribution(2, 2, seed=6)
    distribution = student_distribution(student, process, times)
    ratio = exact.log_ratio(distribution.detach(), teacher, process)
    beta, weight = BetaTime(0.02, 0.98), ElboWeight(process.schedule, 0.1, 10.0)

    def estimator(x: Tensor, token_log_probs: Tensor, *, group_size: int, t: Tensor):
        x_t = process.corrupt(x, t)
        return integral_kl(
            token_log_probs,
            exact.look_up(ratio, x_t),
            time_weight=weight(t) / beta.density(t),
            group_size=group_size,
            baseline=baseline,
        )

    points, widths = gauss_legendre(12, 0.02, 0.98)
    mass = list(zip(points, widths * beta.density(points), strict=True))
    paths = enumerate_paths(student, process, times)
    actual = expected_gradient(estimator, paths, student, process, mass, group_size)
    value = exact.integral_kl(distribution, teacher, process, weight, low=0.02, high=0.98, nodes=12)
    truth = torch.autograd.grad(value, student.logits, retain_graph=True)[0]
    assert float(truth.abs().max()) > 1e-3
    torch.testing.assert_close(actual, truth, atol=1e-8, rtol=0)


def test_by_hand() -> None:
    log_probs = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]], requires_grad=True)
    out = integral_kl(log_probs, torch.tensor([0.5, -2.0]), time_weight=torch.tensor([2.0, 3.0]))
    assert out.advantages.tolist() == [-0.5, 2.0]
    assert out.loss.item() == pytest.approx(-0.5 * (2.0 * -0.5 * -3.0 + 3.0 * 2.0 * -7.0))
    out.loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[0.5, 0.5], [-3.0, -3.0]]


def test_by_hand_with_token_credit_groups_and_given_positions() -> None:
    """Members of a group are compared at each position; given positions enter nothing."""
    log_probs = torch.zeros(2, 3, requires_grad=True)
    ratio = torch.tensor([[1.0, 5.0, math.nan], [3.0, -1.0, math.nan]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    out = integral_kl(log_probs, ratio, group_size=2, baseline="group", generation_mask=mask)
    assert out.advantages.tolist() == [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]
    out.loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[-0.5, 0.0, 0.0], [0.5, 0.0, 0.0]]


@pytest.mark.parametrize("credit", ["sequence", "token"])
@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_it_is_what_the_estimator_computes(credit, scale) -> None:
    process = MaskedDiffusion(3)
    estimator = ScoreFunctionIntegralKL(
        process,
        ExactLogRatio(process, lambda x_t, t: t),
        weight=ConstantWeight(2.0),
        credit=credit,
        scale=scale,
        reward=LogRatioReward(1.0),
        advantage_clip=0.7,
    )
    by_position = torch.randn(6, 4, generator=seeded(0))
    mask = torch.rand(6, 4, generator=seeded(1)) < 0.8
    ratio = by_position.where(mask, 0.0) if credit == "token" else by_position.sum(1)
    given = {"group_size": 3, "generation_mask": mask}
    leaves = [torch.zeros(6, 4, requires_grad=True) for _ in range(2)]
    whole = estimator.from_log_ratio(
        LogRatio(by_position, by_position.sum(1)), torch.full((6,), 0.5), leaves[0], **given
    )
    pure = integral_kl(
        leaves[1],
        ratio,
        time_weight=torch.full((6,), 2.0),
        baseline="leave_one_out",
        scale=scale,
        clip=0.7,
        reward=LogRatioReward(1.0),
        **given,
    )
    assert torch.equal(whole.advantages, pure.advantages)
    gradients = [torch.autograd.grad(out.loss, leaf)[0] for out, leaf in zip((whole, pure), leaves, strict=True)]
    assert torch.equal(*gradients)
    assert float(gradients[0].abs().max()) > 0.0


def test_parts_of_a_batch_have_the_advantages_of_the_whole() -> None:
    process = MaskedDiffusion(3)
    estimator = ScoreFunctionIntegralKL(
        process, ExactLogRatio(process, lambda x_t, t: t), credit="token", scale="batch", baseline="batch"
    )
    by_position, t = torch.randn(6, 4, generator=seeded(0)), torch.full((6,), 0.5)
    ratio = LogRatio(by_position, by_position.sum(1))
    leaf = torch.zeros(6, 4, requires_grad=True)
    whole = estimator.from_log_ratio(ratio, t, leaf, group_size=2)
    scores = [
        estimator.score_of(LogRatio(*(each[rows] for each in ratio)), t[rows], group_size=2)
        for rows in (slice(0, 2), slice(2, 6))
    ]
    parts = estimator.advantages(scores)
    torch.testing.assert_close(torch.cat(parts), whole.advantages)
    losses = [
        estimator.surrogate(leaf[rows], *each).loss * size / 6
        for rows, each, size in zip((slice(0, 2), slice(2, 6)), zip(scores, parts, strict=True), (2, 4), strict=True)
    ]
    gradient = torch.autograd.grad(sum(losses), leaf)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(whole.loss, leaf)[0])


def test_bad_arguments_are_refused() -> None:
    log_probs, ratio = torch.zeros(4, 3), torch.zeros(4)
    for error, match, arguments, options in [
        (ValueError, r"\[4\]", (ratio, ratio), {}),
        (ValueError, r"\[3\]", (log_probs, torch.zeros(3)), {}),
        (TypeError, "int64", (log_probs, torch.zeros(4).long()), {}),
        (ValueError, "3", (log_probs, ratio), {"group_size": 3}),
        (ValueError, "leave_one_out", (log_probs, ratio), {"baseline": "leave_one_out"}),
        (ValueError, "median", (log_probs, ratio), {"scale": "median"}),
        (ValueError, "time_weight", (log_probs, ratio), {"time_weight": torch.ones(3)}),
        (TypeError, "generation_mask", (log_probs, ratio), {"generation_mask": torch.ones(4, 3)}),
        (ValueError, "nan", (log_probs, torch.full((4,), math.nan)), {}),
        (ValueError, "sequence 0, position 0", (log_probs, torch.full((4, 3), math.nan)), {}),
    ]:
        with pytest.raises(error, match=match):
            integral_kl(*arguments, **options)
