"""Log-ratios of a batch of samples, as the integral KL's estimator reads them.

Shape suffixes: B batch, L length, M corruptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class CorruptionScore(NamedTuple):
    """Log-ratio of each sequence ``[B]`` and at its positions ``[B, L]``, and the weight of its time ``[B]``."""

    per_sequence: Tensor
    per_position: Tensor
    weight: Tensor


class SampleScores(NamedTuple):
    """Log-ratios of a batch of samples, averaged over its corruptions; see `ScoreFunctionIntegralKL.score`.

    Attributes:
        per_sequence: ``[B]``, nats.
        per_position: ``[B, L]``, nats.
        weight: of each sequence's times, ``[B]``.
        generation_mask: bool ``[B, L]``, the positions that the student wrote.
        group_size: consecutive rows in a group.

    Examples:
        >>> estimator = ScoreFunctionIntegralKL(process, DiscriminatorLogRatio(process, discriminator), corruptions=4)
        >>> scores = estimator.score(data, group_size=4, generator=generator)
        >>> scores.per_sequence.shape, scores.per_position.shape
        (torch.Size([8]), torch.Size([8, 16]))
    """

    per_sequence: Tensor
    per_position: Tensor
    weight: Tensor
    generation_mask: Tensor
    group_size: int


def mean_score(scores: Sequence[CorruptionScore], group_size: int, generation_mask: Tensor | None) -> SampleScores:
    """Average the scores of all corruptions of a batch, by the weights of their times.

    Args:
        scores: one or more.
        group_size: consecutive rows in a group.
        generation_mask: bool ``[B, L]``; all if None.
    """
    if generation_mask is None:
        generation_mask = torch.ones_like(scores[0].per_position, dtype=torch.bool)
    weight_MB = torch.stack([score.weight for score in scores])
    # Corruptions at different times count by their weights: weight and log-ratio are not independent.
    share_MB = weight_MB / weight_MB.sum(0).clamp(min=torch.finfo(weight_MB.dtype).tiny)
    ratio_B = (share_MB * torch.stack([score.per_sequence for score in scores])).sum(0)
    ratio_BL = (share_MB[:, :, None] * torch.stack([score.per_position for score in scores])).sum(0)
    return SampleScores(ratio_B, ratio_BL, weight_MB.mean(0), generation_mask, group_size)


def windowed_sum(values_BL: Tensor, window: int, before: int | None = None) -> Tensor:
    """Sum over positions at most ``window`` behind and ``before`` (as many by default) before each, ``[B, L]``. Nothing
    further off enters, not by rounding either."""
    before = window if before is None else before
    return F.pad(values_BL, (before, window)).unfold(1, before + 1 + window, 1).sum(-1)
