"""MAUVE (arXiv 2102.01454): how far two sets of texts are from each other, both ways, in the features of an encoder.

Features of both sets are put in clusters together; with ``p`` and ``q`` the two histograms over clusters,

    r_l = l p + (1 - l) q,    curve( exp(-c KL(q || r_l)), exp(-c KL(p || r_l)) ),    0 < l < 1

and MAUVE is the area below the curve, in ``(0, 1]``; 1 for equal histograms. Figures depend on encoder, number of
samples and clusters: compare at equal ones, beside data against data, which is the most that can be had.

Shape suffixes: N, M samples, D width of features, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

CURVE_POINTS = 512


@dataclass(frozen=True, kw_only=True)
class Mauve:
    """The score and what it was measured with.

    Attributes:
        score: area, in ``(0, 1]``.
        num_clusters: K.
        num_samples: N, of the first set.
        num_reference: M, of the second.
    """

    score: float
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
    """MAUVE of two sets of features, averaged over ``repeats`` clusterings.

    Args:
        samples_ND: one row a sample.
        reference_MD: likewise, of data.
        num_clusters: K; a tenth of the smaller set by default, at least 2.
        scale: ``c`` (paper: 5).
        repeats: clusterings; the start of k-means is random.
        generator: source of randomness.

    Raises:
        ValueError: if widths differ, a set has fewer than two rows, or there are more clusters than rows.
    """
    if samples_ND.dim() != 2 or reference_MD.dim() != 2 or samples_ND.shape[1] != reference_MD.shape[1]:
        raise ValueError(
            f"features must be [N, D] and [M, D], got {list(samples_ND.shape)} and {list(reference_MD.shape)}"
        )
    smaller = min(len(samples_ND), len(reference_MD))
    if smaller < 2 or repeats < 1:
        raise ValueError(f"MAUVE needs two samples a side and one repeat or more, got {smaller} and {repeats}")
    count = max(2, smaller // 10) if num_clusters is None else num_clusters
    pooled = torch.cat((samples_ND, reference_MD)).double()
    pooled = (pooled - pooled.mean(0)) / pooled.std(0).clamp(min=1e-12)
    scores = []
    for _ in range(repeats):
        cluster = kmeans(pooled, count, generator=generator)
        p, q = (
            torch.bincount(part, minlength=count).double() / len(part)
            for part in cluster.split((len(samples_ND), len(reference_MD)))
        )
        scores.append(frontier_area(p, q, scale=scale))
    return Mauve(
        score=sum(scores) / repeats,
        num_clusters=count,
        num_samples=len(samples_ND),
        num_reference=len(reference_MD),
    )


def frontier_area(p_K: Tensor, q_K: Tensor, *, scale: float = 5.0) -> float:
    """Area below the curve of two histograms; ``c B(c, c + 1)`` where they share no cluster."""
    mix_T1 = torch.linspace(0.0, 1.0, CURVE_POINTS + 2, dtype=torch.float64)[1:-1, None]
    mixture_TK = mix_T1 * p_K.double() + (1.0 - mix_T1) * q_K.double()
    x = torch.exp(-scale * _kl_rows(q_K.double(), mixture_TK))
    y = torch.exp(-scale * _kl_rows(p_K.double(), mixture_TK))
    # As l goes to 1 the mixture is p: y = 1, and the curve goes straight to x = 0; and the other way round.
    zero, one = x.new_zeros(1), x.new_ones(1)
    x, y = torch.cat((one, x, zero)), torch.cat((zero, y, one))
    return float(torch.trapezoid(y.flip(0), x.flip(0)))


def _kl_rows(p_K: Tensor, mixture_TK: Tensor) -> Tensor:
    return torch.special.xlogy(p_K, p_K).sum() - torch.special.xlogy(p_K, mixture_TK).sum(1)


def kmeans(points_ND: Tensor, count: int, *, iterations: int = 50, generator: Generator | None = None) -> Tensor:
    """Cluster of each point, int64 ``[N]``: Lloyd's algorithm from k-means++ seeds; stops when nothing moves.

    Raises:
        ValueError: if there are fewer points than clusters.
    """
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
    first = torch.randint(len(points_ND), (1,), generator=generator)
    chosen = [int(first)]
    nearest = torch.cdist(points_ND, points_ND[chosen]).square().squeeze(1)
    for _ in range(count - 1):
        weight = nearest if bool(nearest.sum() > 0) else torch.ones_like(nearest)
        chosen.append(int(torch.multinomial(weight, 1, generator=generator)))
        nearest = torch.minimum(nearest, torch.cdist(points_ND, points_ND[chosen[-1:]]).square().squeeze(1))
    return points_ND[chosen]
