import itertools
import math

import pytest
import torch
from laboratory import random_distribution
from scipy import special, stats

from discrete_distill import exact

P, Q = random_distribution(3, 3, 0), random_distribution(3, 3, 1)


def test_kl_total_variation_and_entropy_equal_scipy():
    assert float(exact.kl(P, Q)) == pytest.approx(special.rel_entr(P.numpy(), Q.numpy()).sum())
    assert float(exact.entropy(P)) == pytest.approx(stats.entropy(P.flatten().numpy()))
    assert float(exact.total_variation(P, Q)) == pytest.approx(float((P - Q).clamp_min(0).sum()))


def test_support_decides_between_finite_and_infinite():
    half, whole = torch.tensor([0.0, 1.0]).double(), torch.tensor([0.5, 0.5]).double()
    assert float(exact.kl(half, whole)) == pytest.approx(math.log(2))
    assert float(exact.kl(whole, half)) == math.inf
    assert float(exact.total_variation(half, whole)) == 0.5


def test_gradients_are_right_and_finite_at_zero():
    q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    p = torch.tensor([0.0, 0.4, 0.6], dtype=torch.float64, requires_grad=True)
    exact.kl(p, q).backward()
    expected = [0.0, math.log(0.4 / 0.3) + 1, math.log(0.6 / 0.5) + 1]
    assert p.grad.tolist() == pytest.approx(expected)


def test_total_correlation_is_the_kl_to_the_product_of_marginals():
    a, b, c = exact.position_marginals(P)
    product = a[:, None, None] * b[None, :, None] * c
    assert float(exact.total_correlation(P)) == pytest.approx(float(exact.kl(P, product)))
    assert float(exact.total_correlation(product)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("measure", [exact.kl, exact.total_variation, exact.subset_kl])
def test_distributions_over_different_sequences_are_refused(measure):
    with pytest.raises(ValueError, match=r"\[3, 3, 3\].*\[3, 3\]"):
        measure(P, random_distribution(3, 2, 0))


def test_agreement_and_collision_are_those_of_pairs_of_sequences():
    equal = same = 0.0
    sequences = list(itertools.product(range(3), repeat=3))
    for a, b in itertools.product(sequences, repeat=2):
        weight = float(P[a] * P[b])
        equal += weight * sum(x == y for x, y in zip(a, b, strict=True)) / 3
        same += weight * (a == b)
    assert float(exact.agreement(P)) == pytest.approx(equal)
    assert float(exact.collision(P)) == pytest.approx(same)
