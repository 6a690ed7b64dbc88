"""MMD between tokens: against plain sums, unbiased by enumeration of all batches, and its gradient by REINFORCE."""

from itertools import product

import pytest
import torch
from torch import Tensor

from discrete_distill.distillation.divergence import (
    LogRatio,
    ScoreFunctionIntegralKL,
    median_bandwidth,
    mmd_squared,
    rbf_kernel,
    token_witness,
)
from discrete_distill.process import MaskedDiffusion

SEQUENCES, LENGTH, WIDTH = 3, 2, 2


@pytest.fixture
def features(seeded) -> Tensor:
    """Of every sequence of a language of three, ``[3, L, D]``."""
    return torch.randn(SEQUENCES, LENGTH, WIDTH, generator=seeded(1), dtype=torch.float64).float()


def kernel_of_sequences(features: Tensor, bandwidth: float) -> Tensor:
    """``[3, 3]``: mean kernel between the tokens of two sequences."""
    flat = features.flatten(0, 1)
    tokens = rbf_kernel(flat, flat, torch.tensor(bandwidth)).view(SEQUENCES, LENGTH, SEQUENCES, LENGTH)
    return tokens.mean((1, 3)).double()


def test_the_kernel_and_its_bandwidth(seeded) -> None:
    f, g = torch.randn(5, 3, generator=seeded(0)), torch.randn(4, 3, generator=seeded(1))
    expected = torch.tensor([[float(torch.exp(-((a - b) ** 2).sum() / (2 * 1.7**2))) for b in g] for a in f])
    torch.testing.assert_close(rbf_kernel(f, g, torch.tensor(1.7)), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(rbf_kernel(f, g, torch.tensor(1.7)), expected)
    assert float(median_bandwidth(torch.tensor([[0.0], [1.0], [3.0]]))) == 2.0


def test_the_witness_is_a_sum_over_other_groups_less_one_over_the_reference(seeded) -> None:
    student, reference = torch.randn(6, 3, 2, generator=seeded(0)), torch.randn(4, 5, 2, generator=seeded(1))
    loss_mask = torch.rand(6, 3, generator=seeded(2)) < 0.7
    actual = token_witness(student, reference, group_size=2, loss_mask_BL=loss_mask, bandwidth=0.8)

    def k(a: Tensor, b: Tensor) -> float:
        return float(torch.exp(-(a - b).square().sum() / (2 * 0.8**2)))

    for b, i in product(range(6), range(3)):
        others = [student[c][loss_mask[c]] for c in range(6) if c // 2 != b // 2 and loss_mask[c].any()]
        theirs = sum(sum(k(student[b, i], f) for f in tokens) / len(tokens) for tokens in others) / len(others)
        data = sum(k(student[b, i], g) for g in reference.flatten(0, 1)) / 20
        assert float(actual[b, i]) == pytest.approx((theirs - data) * bool(loss_mask[b, i]), abs=1e-5)


def test_mmd_is_unbiased_over_all_batches_and_zero_for_equal_distributions(features) -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    kernel = kernel_of_sequences(features, 0.9)
    for distribution, exact in ((q, (p - q) @ kernel @ (p - q)), (p, torch.zeros(()))):
        mean = 0.0
        for x1, x2, y1, y2 in product(range(SEQUENCES), repeat=4):
            weight = float(p[x1] * p[x2] * distribution[y1] * distribution[y2])
            mean += weight * float(mmd_squared(features[[x1, x2]], features[[y1, y2]], bandwidth=0.9))
        assert mean == pytest.approx(float(exact), abs=1e-6)


def test_reinforce_with_groups_has_exactly_the_gradient_of_mmd(features) -> None:
    """Expectation over all 3^4 batches of two groups of two, at a fixed reference."""
    theta = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64, requires_grad=True)
    reference = features[[2, 2, 0]]
    q = torch.tensor([1 / 3, 0.0, 2 / 3], dtype=torch.float64)
    p = theta.softmax(0)
    (expected,) = torch.autograd.grad((p - q) @ kernel_of_sequences(features, 0.9) @ (p - q), theta)
    estimator = ScoreFunctionIntegralKL(MaskedDiffusion(9), lambda *_, **__: pytest.fail("asked"), scale="none")
    actual = torch.zeros_like(theta)
    for batch in product(range(SEQUENCES), repeat=4):
        log_probs = theta.log_softmax(0)[list(batch)]
        witness = 2.0 * token_witness(features[list(batch)], reference, group_size=2, bandwidth=0.9) / LENGTH
        ratio = LogRatio(witness, witness.sum(1))
        per_token = torch.stack((log_probs, torch.zeros_like(log_probs)), dim=1)
        loss = estimator.from_log_ratio(ratio, torch.zeros(4), per_token, group_size=2).loss
        (gradient,) = torch.autograd.grad(loss, theta)
        actual += float(log_probs.detach().sum().exp()) * gradient
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("student", "reference", "group_size", "message"),
    [
        ((4, 3, 2), (4, 3, 5), 1, "features must be"),
        ((4, 3, 2), (4, 3, 2), 4, "needs two whole groups"),
        ((4, 3, 2), (4, 3, 2), 3, "needs two whole groups"),
    ],
)
def test_what_cannot_be_compared_is_refused(student, reference, group_size, message) -> None:
    with pytest.raises(ValueError, match=message):
        token_witness(torch.zeros(student), torch.zeros(reference), group_size=group_size)


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bandwidth_that_is_not_positive_is_refused(bandwidth) -> None:
    f, g = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    for call in (
        lambda: rbf_kernel(f[0], g[0], torch.tensor(bandwidth)),
        lambda: token_witness(f, g, bandwidth=bandwidth),
        lambda: mmd_squared(f, g, bandwidth=bandwidth),
    ):
        with pytest.raises(ValueError, match=str(bandwidth)):
            call()


def test_given_positions_change_no_witness() -> None:
    """Sequences behind prompts whose features are not even numbers, and one that is given throughout."""
    f, g = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    loss_mask = torch.zeros(6, 5, dtype=torch.bool)
    loss_mask[:4, 2:] = True
    wide_f, wide_g = (torch.full((6, 5, 2), float("nan")) for _ in range(2))
    wide_f[:4, 2:], wide_g[:4, 2:] = f, g
    actual = token_witness(wide_f, wide_g, group_size=2, loss_mask_BL=loss_mask)
    torch.testing.assert_close(actual[:4, 2:], token_witness(f, g, group_size=2))
    assert bool((actual[~loss_mask] == 0).all())
