"""Rewards and their normalisers: from log-ratios to advantages.

A log-ratio is student minus teacher; a reward is its negative. Rows of a batch come in groups of consecutive rows,
which share what their comparison must hold fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .collective import mean_of_all

Scale = Literal["group", "batch", "none"]
Baseline = Literal["group", "leave_one_out", "batch", "none"]


@dataclass(frozen=True)
class LogRatioReward:
    """``r = -clip(log q_student / q_teacher, -clip, clip)``.

    Args:
        clip: greatest size of a raw log-ratio, nats (paper: 8); ``inf`` for none. Clipping biases the gradient.

    Raises:
        ValueError: if ``clip`` is not positive.
    """

    clip: float = float("inf")

    def __post_init__(self) -> None:
        if not self.clip > 0.0:
            raise ValueError(f"clip must be positive, got {self.clip}")

    def __call__(self, log_ratio: Tensor) -> Tensor:
        return -log_ratio.clamp(-self.clip, self.clip)


class RunningMean:
    """Baseline ``b <- decay b + (1 - decay) mean(r)``, from the batches before the one that it is subtracted from: that
    one knows nothing of it, so the gradient stays unbiased (REINFORCE with a reinforcement baseline, Williams 1992).

    It remembers: hold one for each stream of rewards. The first batch is compared with 0.

    Args:
        decay: in ``[0, 1)``; the weight of older batches falls by it with each batch.

    Raises:
        ValueError: if ``decay`` is outside.
    """

    def __init__(self, decay: float = 0.9) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.batches = 0
        self._sum: Tensor | float = 0.0

    @property
    def value(self) -> Tensor | float:
        """The baseline of the next batch; weights of all batches so far sum to 1."""
        return self._sum / (1.0 - self.decay**self.batches) if self.batches else 0.0

    def update(self, rewards: Tensor) -> None:
        """Take in one batch, over all processes."""
        self._sum = self.decay * self._sum + (1.0 - self.decay) * mean_of_all(rewards.detach())
        self.batches += 1


def group_advantages(
    rewards: Tensor,
    group_size: int,
    *,
    scale: Scale = "group",
    baseline: Baseline | RunningMean = "group",
    clip: float | None = None,
    eps: float = 1e-4,
) -> Tensor:
    """``(r - baseline) / (scale + eps)``, clipped; GRPO's form (arXiv 2402.03300), as in DiDi-Instruct.

    Without scale and clip the gradient stays unbiased for "leave_one_out", a `RunningMean` and "none"; "group" and
    "batch" means contain the sample itself and shrink the gradient by ``1 - 1/n``. Scaling by a standard deviation and
    clipping bias it, and where a group hardly differs, dividing by its own standard deviation amplifies noise.

    Args:
        rewards: ``[B]``, groups of consecutive rows; a group never straddles processes.
        group_size: must divide ``B``.
        scale: population standard deviation of the "group", of the "batch" (after the baseline; over all processes), or
            "none".
        baseline: mean of the "group", of the other members ("leave_one_out"), of the "batch" (over all processes), of
            earlier batches (a `RunningMean`, which then takes this batch in), or "none".
        clip: greatest size of an advantage (paper: 3.0).
        eps: added to the standard deviation.

    Returns:
        ``[B]``, without gradient.

    Raises:
        ValueError: if the group size does not divide the batch, is 1 where a group of others is needed, or a name is
            unknown.
    """
    if rewards.dim() != 1:
        raise ValueError(f"rewards must be one number per sample, [B], got shape {tuple(rewards.shape)}")
    if group_size < 1 or rewards.shape[0] % group_size:
        raise ValueError(f"group_size {group_size} does not divide the batch of {rewards.shape[0]} rewards")
    grouped = rewards.detach().view(-1, group_size)
    centred = grouped - _baseline(grouped, baseline)
    if scale == "group":
        centred = centred / (grouped.std(1, keepdim=True, unbiased=False) + eps)
    elif scale == "batch":
        centred = centred / (mean_of_all(centred.square()).sqrt() + eps)
    elif scale != "none":
        raise ValueError(f'scale is "group", "batch" or "none", got {scale!r}')
    advantages = centred.flatten()
    return advantages if clip is None else advantages.clamp(-clip, clip)


def _baseline(grouped: Tensor, baseline: Baseline | RunningMean) -> Tensor:
    size = grouped.shape[1]
    if isinstance(baseline, RunningMean):
        value = torch.zeros_like(grouped) + baseline.value
        baseline.update(grouped)
        return value
    if baseline == "group":
        return grouped.mean(1, keepdim=True)
    if baseline == "leave_one_out":
        if size < 2:
            raise ValueError("leave_one_out needs a group_size of 2 or more, got 1")
        return (grouped.sum(1, keepdim=True) - grouped) / (size - 1)
    if baseline == "batch":
        return mean_of_all(grouped)
    if baseline == "none":
        return torch.zeros_like(grouped)
    raise ValueError(f'baseline is "group", "leave_one_out", "batch" or "none", got {baseline!r}')


@dataclass(frozen=True)
class GroupNormalizer:
    """``(r - group mean) / (group std + eps)``, clipped: the paper's. See `group_advantages`."""

    group_size: int
    clip: float | None = 3.0
    eps: float = 1e-4

    def __call__(self, rewards: Tensor) -> Tensor:
        return group_advantages(rewards, self.group_size, clip=self.clip, eps=self.eps)


@dataclass(frozen=True)
class LeaveOneOutNormalizer:
    """``r - mean of the others in the group``: unbiased (RLOO, arXiv 2402.14740). See `group_advantages`."""

    group_size: int
    scale: Scale = "none"
    clip: float | None = None
    eps: float = 1e-4

    def __call__(self, rewards: Tensor) -> Tensor:
        return group_advantages(
            rewards, self.group_size, scale=self.scale, baseline="leave_one_out", clip=self.clip, eps=self.eps
        )


@dataclass(frozen=True)
class BatchNormalizer:
    """``(r - batch mean) / (batch std + eps)``, over all processes. See `group_advantages`."""

    clip: float | None = 3.0
    eps: float = 1e-4

    def __call__(self, rewards: Tensor) -> Tensor:
        return group_advantages(rewards, 1, scale="batch", baseline="batch", clip=self.clip, eps=self.eps)
