"""MAUVE (arXiv 2102.01454): how far two sets of texts are from each other, both ways, in the features of an encoder.

The published procedure, with the constants of its code (mauve-text): features of both sets are scaled to length one
and projected on the principal components that hold 90% of their variance, and put in ``K`` clusters together. With
``p`` and ``q`` the two histograms over clusters,

    r_l = l p + (1 - l) q,    curve( exp(-c KL(q || r_l)), exp(-c KL(p || r_l)) ),    l at 25 points of (0, 1)

and MAUVE is the area below the curve, in ``(0, 1]``; 1 for equal histograms, 0.004 for histograms that share nothing.
Of five k-means the one with the smallest squared distances is taken. Here k-means starts from k-means++ seeds, where
the published code draws points at random. Figures depend on encoder, number of samples and clusters: compare at equal
ones, and with the score of data against data, which is the upper limit.

Shape suffixes: N, M samples, D width of features, P principal components, K clusters, T points of the curve.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

CURVE_POINTS = 25
CURVE_END = 1e-6
EXPLAINED_VARIANCE = 0.9
KMEANS_ITERATIONS = 500


@dataclass(frozen=True, kw_only=True)
class Mauve:
    """The score and what it was measured with.

    Attributes:
        score: area, in ``(0, 1]``.
        smoothed_score: the same with half a sample added to each cluster of both sets (Krichevsky-Trofimov), which
            suffers less from clusters that a small set leaves empty by chance.
        num_clusters: K.
        num_samples: N, of the first set.
        num_reference: M, of the second.

    Examples:
        >>> features = torch.randn(32, 4, generator=generator)
        >>> mauve(features, features, generator=generator).score
        1.0
        >>> mauve(features, features + 100.0, generator=generator).score < 0.1
        True
    """

    score: float
    smoothed_score: float
    num_clusters: int
    num_samples: int
    num_reference: int


def mauve(
    samples_ND: Tensor,
    reference_MD: Tensor,
    *,
    num_clusters: int | None = None,
    scale: float = 5.0,
    repeats: int = 5,
    generator: Generator | None = None,
) -> Mauve:
    """Compute MAUVE of two sets of features; on the CPU in fp64, so that it does not depend on their device.

    Args:
        samples_ND: one row a sample, float ``[N, D]``, on any device.
        reference_MD: likewise, of data, ``[M, D]``.
        num_clusters: K; a tenth of the smaller set by default, at least 2.
        scale: ``c`` (paper: 5).
        repeats: clusterings, of which the best is taken; the start of k-means is random.
        generator: source of randomness.

    Raises:
        ValueError: if widths differ, a set has fewer than two rows, a feature is not finite, there are more clusters
            than rows, or ``scale`` or ``repeats`` is not positive.

    Examples:
        >>> student_features, data_features = torch.randn(2, 64, 8, generator=generator)
        >>> 0.0 < mauve(student_features, data_features, generator=generator).score <= 1.0
        True
    """
    if samples_ND.dim() != 2 or reference_MD.dim() != 2 or samples_ND.shape[1] != reference_MD.shape[1]:
        raise ValueError(
            f"features must be [N, D] and [M, D], got {list(samples_ND.shape)} and {list(reference_MD.shape)}"
        )
    smaller = min(len(samples_ND), len(reference_MD))
    if smaller < 2 or repeats < 1 or not samples_ND.shape[1]:
        raise ValueError(
            f"MAUVE needs two samples a side, one feature and one repeat or more, got {smaller}, {samples_ND.shape[1]} "
            f"and {repeats}"
        )
    _check_scale(scale)
    count = max(2, round(smaller / 10)) if num_clusters is None else num_clusters
    pooled = torch.cat([each.detach().cpu().double() for each in (samples_ND, reference_MD)])
    if not bool(pooled.isfinite().all()):
        wrong = int((~pooled.isfinite()).any(1).sum())
        raise ValueError(f"{wrong} of {len(pooled)} rows of features are not finite; look at the encoder")
    reduced = principal_components(torch.nn.functional.normalize(pooled, dim=1), EXPLAINED_VARIANCE)
    found = [kmeans(reduced, count, iterations=KMEANS_ITERATIONS, generator=generator) for _ in range(repeats)]
    cluster = min(found, key=lambda each: _scatter(reduced, each, count))
    counts = [
        torch.bincount(part, minlength=count).double() for part in cluster.split((len(samples_ND), len(reference_MD)))
    ]
    p, q = (each / each.sum() for each in counts)
    p_smooth, q_smooth = ((each + 0.5) / (each + 0.5).sum() for each in counts)
    return Mauve(
        score=frontier_area(p, q, scale=scale),
        smoothed_score=frontier_area(p_smooth, q_smooth, scale=scale),
        num_clusters=count,
        num_samples=len(samples_ND),
        num_reference=len(reference_MD),
    )


def frontier_area(p_K: Tensor, q_K: Tensor, *, scale: float = 5.0, num_points: int = CURVE_POINTS) -> float:
    """Compute the area below the curve of two histograms; ``c B(c, c + 1)`` where they are disjoint, by many points."""
    _check_scale(scale)
    p_K, q_K = p_K.double(), q_K.double()
    sums = [float(each.sum()) for each in (p_K, q_K)]
    if p_K.shape != q_K.shape or p_K.dim() != 1 or bool((torch.stack((p_K, q_K)) < 0).any()):
        raise ValueError(f"histograms must be [K] and not negative, got {list(p_K.shape)} and {list(q_K.shape)}")
    if any(not abs(total - 1.0) < 1e-4 for total in sums) or num_points < 2:
        raise ValueError(f"histograms must sum to 1 and points be 2 or more, got {sums} and {num_points}")
    mix_T1 = torch.linspace(CURVE_END, 1.0 - CURVE_END, num_points, dtype=torch.float64, device=p_K.device)[:, None]
    mixture_TK = mix_T1 * p_K + (1.0 - mix_T1) * q_K
    x = torch.exp(-scale * _kl_rows(q_K, mixture_TK))
    y = torch.exp(-scale * _kl_rows(p_K, mixture_TK))
    # As l goes to 1 the mixture is p: y = 1, and the curve goes straight to x = 0; and the other way round. The curve
    # falls, so that the areas over both axes, whose mean is published, are one and the same.
    zero, one = x.new_zeros(1), x.new_ones(1)
    x, y = torch.cat((one, x, zero)), torch.cat((zero, y, one))
    return float(torch.trapezoid(y.flip(0), x.flip(0)))


def principal_components(points_ND: Tensor, explained: float) -> Tensor:
    """Project on the fewest principal components that hold a fraction ``explained`` of the variance, ``[N, P]``."""
    centred_ND = points_ND - points_ND.mean(0)
    _, singular, directions = torch.linalg.svd(centred_ND, full_matrices=False)
    variance = singular.square().cumsum(0)
    # Points that are all alike have no variance: any one component will do.
    kept = int((variance < explained * variance[-1]).sum()) + 1
    return centred_ND @ directions[:kept].mT


def _check_scale(scale: float) -> None:
    if not 0.0 < scale < float("inf"):
        raise ValueError(f"scale must be positive and finite, got {scale}")


def _scatter(points_NP: Tensor, cluster_N: Tensor, count: int) -> float:
    """Sum of squared distances from the centres of the clusters."""
    sums_KP = points_NP.new_zeros(count, points_NP.shape[1]).index_add(0, cluster_N, points_NP)
    centres_KP = sums_KP / torch.bincount(cluster_N, minlength=count).clamp(min=1)[:, None]
    return float((points_NP - centres_KP[cluster_N]).square().sum())


def _kl_rows(p_K: Tensor, mixture_TK: Tensor) -> Tensor:
    return torch.special.xlogy(p_K, p_K).sum() - torch.special.xlogy(p_K, mixture_TK).sum(1)


def kmeans(points_ND: Tensor, count: int, *, iterations: int = 50, generator: Generator | None = None) -> Tensor:
    """Cluster of each point, int64 ``[N]``: Lloyd's algorithm from k-means++ seeds; stops when nothing moves.

    Args:
        points_ND: float ``[N, D]``, on any device.
        count: K.
        iterations: at most.
        generator: source of randomness, on any device.

    Raises:
        ValueError: if there are fewer points than clusters, or a point is not finite.

    Examples:
        >>> points = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> first, second, third, fourth = kmeans(points, 2, generator=generator).tolist()
        >>> first == second, second == third, third == fourth
        (True, False, True)
    """
    if not bool(points_ND.isfinite().all()):
        raise ValueError("points that are not finite have no cluster")
    if not 1 <= count <= len(points_ND):
        raise ValueError(f"{len(points_ND)} points cannot be put in {count} clusters")
    centres_KD = _spread_seeds(points_ND, count, generator)
    cluster = torch.cdist(points_ND, centres_KD).argmin(1)
    for _ in range(iterations):
        sums_KD = torch.zeros_like(centres_KD).index_add(0, cluster, points_ND)
        sizes_K = torch.bincount(cluster, minlength=count)
        # A cluster that lost all its points keeps its centre.
        centres_KD = torch.where(sizes_K[:, None] > 0, sums_KD / sizes_K.clamp(min=1)[:, None], centres_KD)
        moved = torch.cdist(points_ND, centres_KD).argmin(1)
        if torch.equal(moved, cluster):
            break
        cluster = moved
    return cluster


def _spread_seeds(points_ND: Tensor, count: int, generator: Generator | None) -> Tensor:
    """k-means++: each next seed with probability in proportion to its squared distance from those before."""
    place = torch.device("cpu") if generator is None else generator.device
    chosen = [int(torch.randint(len(points_ND), (1,), generator=generator, device=place))]
    nearest = torch.cdist(points_ND, points_ND[chosen]).square().squeeze(1)
    for _ in range(count - 1):
        weight = nearest if bool(nearest.sum() > 0) else torch.ones_like(nearest)
        chosen.append(int(torch.multinomial(weight.to(place), 1, generator=generator)))
        nearest = torch.minimum(nearest, torch.cdist(points_ND, points_ND[chosen[-1:]]).square().squeeze(1))
    return points_ND[chosen]
