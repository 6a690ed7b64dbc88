"""MAUVE: the area in closed form, clusters that are found, and sets that are alike, apart, or one-sided."""

import math
from itertools import pairwise

import pytest
import torch

from discrete_distill.evaluation import kmeans, mauve
from discrete_distill.evaluation.mauve import frontier_area


def test_the_area_of_equal_and_of_disjoint_histograms() -> None:
    p = torch.tensor([0.2, 0.3, 0.5])
    assert frontier_area(p, p) == pytest.approx(1.0, abs=1e-9)
    for c in (1.0, 5.0):
        disjoint = c * math.gamma(c) * math.gamma(c + 1) / math.gamma(2 * c + 1)
        area = frontier_area(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), scale=c)
        assert area == pytest.approx(disjoint, rel=1e-3)


def test_the_area_against_a_fine_integral_and_its_symmetry() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64), torch.tensor([0.1, 0.0, 0.9], dtype=torch.float64)

    def kl(a, b) -> float:
        return sum(float(x) * math.log(float(x) / float(y)) for x, y in zip(a, b, strict=True) if x > 0)

    points = []
    for k in range(1, 4_000):
        r = k / 4_000 * p + (1 - k / 4_000) * q
        points.append((math.exp(-5 * kl(q, r)), math.exp(-5 * kl(p, r))))
    points = [(1.0, 0.0), *points, (0.0, 1.0)]
    area = sum((a[0] - b[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    assert frontier_area(p, q) == pytest.approx(area, abs=1e-4)
    assert frontier_area(q, p) == pytest.approx(frontier_area(p, q), abs=1e-6)


def test_kmeans_finds_clusters_that_are_apart_and_stays_at_its_optimum(seeded) -> None:
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    label = torch.arange(200) % 4
    points = centres[label] + torch.randn(200, 2, generator=seeded(0))
    cluster = kmeans(points, 4, generator=seeded(1))
    assert len({(int(a), int(b)) for a, b in zip(label, cluster, strict=True)}) == 4
    means = torch.stack([points[cluster == k].mean(0) for k in range(4)])
    assert torch.equal(torch.cdist(points, means).argmin(1), cluster)
    assert kmeans(torch.zeros(5, 2), 3, generator=seeded(1)).shape == (5,)
    with pytest.raises(ValueError, match="3 points cannot be put in 4 clusters"):
        kmeans(torch.zeros(3, 1), 4)


def test_alike_sets_score_high_and_distant_or_collapsed_ones_low(seeded) -> None:
    p, same = torch.randn(300, 4, generator=seeded(0)), torch.randn(300, 4, generator=seeded(1))
    far, collapsed = same + 20.0, 0.01 * same + 1.0
    alike = mauve(p, same, generator=seeded(2))
    assert (alike.num_clusters, alike.num_samples, alike.num_reference) == (30, 300, 300)
    assert alike.score > 0.8
    assert mauve(far, p, num_clusters=10, generator=seeded(2)).score < 0.01
    assert mauve(collapsed, p, generator=seeded(2)).score < 0.3


def test_what_has_no_mauve_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got \[4, 2\] and \[4, 3\]"):
        mauve(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="two samples a side"):
        mauve(torch.zeros(1, 2), torch.zeros(4, 2))
