"""Figures to watch of a reward."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...models import masked_mean
from ..divergence import ScoreFunctionIntegralKL, SurrogateOutput
from ..rollout import Rollout


def reward_metrics(estimator: ScoreFunctionIntegralKL, rollout: Rollout, out: SurrogateOutput) -> dict[str, Tensor]:
    """Mean, deviation and size of the log-ratio, and how much was clipped: of sequences, or tokens, that were
    generated. Its size is the median of its absolute value, in nats, which grows where a ratio network loses the
    student.

    Returns:
        Detached scalars by name.
    """
    generated_B, limit = rollout.loss_mask.any(1), estimator.advantage_clip
    loss_mask = generated_B if out.advantages.dim() == 1 else rollout.loss_mask
    mean = _mean(out.log_ratio, generated_B)
    square = torch.where(generated_B, (out.log_ratio - mean).square(), 0.0).sum()
    size = torch.where(generated_B, out.log_ratio.abs(), torch.nan).nanmedian().nan_to_num()
    at_limit = out.advantages.abs() >= (math.inf if limit is None else limit)
    return {
        "log_ratio": mean,
        "log_ratio_std": (square / (generated_B.sum() - 1).clamp(min=1)).sqrt(),
        "log_ratio_size": size,
        "clipped_rewards": _mean((out.log_ratio.abs() >= estimator.reward.clip).float(), generated_B),
        "clipped_advantages": _mean(at_limit.float(), loss_mask),
    }


def _mean(values: Tensor, loss_mask: Tensor) -> Tensor:
    return masked_mean(values.reshape(1, -1), loss_mask.reshape(1, -1))[0]
