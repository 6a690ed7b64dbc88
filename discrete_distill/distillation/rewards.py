"""Rewards and their normalisers: from log-ratios to advantages.

A log-ratio is student minus teacher; a reward is its negative. Rows of a batch come in groups of consecutive rows,
which share what their comparison must hold fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..checks import check_count, check_mask
from ..distributed.collectives import mean_of_all, sum_of_all

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

    It remembers: hold one for each stream of rewards. The first batch is compared with 0. Rewards that are not finite
    are left out and counted, and a batch without a finite reward is not taken in.

    Args:
        decay: in ``[0, 1)``; the weight of older batches falls by it with each batch.

    Attributes:
        batches: batches taken in, over all processes together.
        skipped: rewards that were not finite.

    Raises:
        ValueError: if ``decay`` is outside.
    """

    def __init__(self, decay: float = 0.9) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self._sum, self._weight, self._batches, self._skipped = torch.zeros(4, dtype=torch.float64).unbind()

    @property
    def value(self) -> Tensor:
        """The baseline of the next batch, a scalar; weights of all batches so far sum to 1."""
        return self._sum / self._weight.where(self._weight > 0.0, 1.0)

    @property
    def batches(self) -> int:
        return int(self._batches)

    @property
    def skipped(self) -> int:
        return int(self._skipped)

    def update(self, rewards: Tensor, mask: Tensor | None = None) -> None:
        """Take in one batch, over all processes.

        Args:
            rewards: any shape.
            mask: bool of that shape, true at rewards that count; all by default.

        Raises:
            TypeError: if the mask does not hold booleans.
            ValueError: if it has another shape.
        """
        rewards = torch.as_tensor(rewards).detach().double()
        check_mask("mask", mask, rewards.shape, of="rewards")
        mask = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
        total, count = sum_of_all(rewards, mask & rewards.isfinite())
        skipped, _ = sum_of_all((mask & ~rewards.isfinite()).double())
        # 0 for a batch without a finite reward, which leaves everything as it was; no wait for the device.
        new = (1.0 - self.decay) * (count > 0.0)
        self._sum = (1.0 - new) * self._sum + new * total / count.clamp(min=1.0)
        self._weight = (1.0 - new) * self._weight + new
        self._batches = self._batches + (count > 0.0)
        self._skipped = self._skipped + skipped

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on needs."""
        state = {name: float(value) for name, value in self._state().items()}
        return {"decay": self.decay, **state}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from `state_dict`.

        Raises:
            ValueError: if it is of another decay.
        """
        if state["decay"] != self.decay:
            raise ValueError(
                f"the state is of a running mean with decay {state['decay']}, this one has {self.decay}; make it with "
                "the same decay"
            )
        for name in self._state():
            setattr(self, f"_{name}", torch.tensor(state[name], dtype=torch.float64))

    def _state(self) -> dict[str, Tensor]:
        return {"sum": self._sum, "weight": self._weight, "batches": self._batches, "skipped": self._skipped}


def group_advantages(
    rewards: Tensor | Sequence[float],
    group_size: int,
    *,
    scale: Scale = "group",
    baseline: Baseline | RunningMean = "group",
    clip: float | None = None,
    eps: float = 1e-4,
    loss_mask: Tensor | None = None,
) -> Tensor:
    """``(r - baseline) / (scale + eps)``, clipped; GRPO's form (arXiv 2402.03300), as in DiDi-Instruct.

    Without scale and clip the gradient stays unbiased for "leave_one_out", a `RunningMean` and "none"; "group" and
    "batch" means contain the sample itself and shrink the gradient by ``1 - 1/n``. Scaling by a standard deviation and
    clipping bias it, and where a group hardly differs, dividing by its own standard deviation amplifies noise.

    Baselines and scales are computed in fp64, so that equal rewards have advantages of exactly 0.

    Args:
        rewards: ``[B]``, groups of consecutive rows; a group never straddles processes. Numbers or booleans.
        group_size: must divide ``B``.
        scale: population standard deviation of the "group", of the "batch" (after the baseline; over all processes), or
            "none".
        baseline: mean of the "group", of the other members ("leave_one_out"; 0 where there is no other), of the "batch"
            (over all processes), of earlier batches (a `RunningMean`, which then takes this batch in), or "none".
        clip: greatest size of an advantage (paper: 3.0).
        eps: added to the standard deviation; not negative.
        loss_mask: bool ``[B]``, true at rewards that count (all, by default). The others enter no baseline and no
            scale, and their advantage is 0.

    Returns:
        ``[B]``, without gradient; in the precision of the rewards, fp32 for integers and booleans.

    Raises:
        ValueError: if the group size does not divide the batch, is 1 where a group of others is needed, a reward that
            counts is not finite, ``eps`` or ``clip`` is out of range, or a name is unknown.
    """
    check_advantages(scale, baseline, clip, eps)
    rewards = torch.as_tensor(rewards)
    if rewards.dim() != 1:
        raise ValueError(f"rewards must be one number per sample, [B], got shape {tuple(rewards.shape)}")
    if group_size < 1 or rewards.shape[0] % group_size:
        raise ValueError(f"group_size {group_size} does not divide the batch of {rewards.shape[0]} rewards")
    if baseline == "leave_one_out" and group_size < 2:
        raise ValueError("leave_one_out needs a group_size of 2 or more, got 1")
    if loss_mask is None:
        loss_mask = torch.ones_like(rewards, dtype=torch.bool)
    check_mask("loss_mask", loss_mask, rewards.shape, of="rewards")
    wrong = loss_mask & ~rewards.isfinite()
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise ValueError(f"the reward of sample {first} is {float(rewards[first])}; rewards must be finite")
    dtype = rewards.dtype if rewards.is_floating_point() else torch.float32
    mask = loss_mask.view(-1, group_size)
    grouped = rewards.detach().double().view(-1, group_size).where(mask, 0.0)
    centred = (grouped - _baseline(grouped, mask, baseline)).where(mask, 0.0)
    if scale == "group":
        spread = _group_mean((grouped - _group_mean(grouped, mask)).where(mask, 0.0).square(), mask).sqrt() + eps
        centred = centred / spread.where(spread > 0.0, 1.0)
    elif scale == "batch":
        spread = mean_of_all(centred.square(), mask).sqrt() + eps
        centred = centred / spread.where(spread > 0.0, 1.0)
    advantages = centred.flatten().to(dtype)
    return advantages if clip is None else advantages.clamp(-clip, clip)


def check_advantages(scale: str, baseline: str | RunningMean, clip: float | None, eps: float = 1e-4) -> None:
    """Refuse choices of `group_advantages` that mean nothing.

    Raises:
        ValueError: see there.
    """
    if scale not in get_args(Scale):
        raise ValueError(f"scale is one of {get_args(Scale)}, got {scale!r}")
    if not isinstance(baseline, RunningMean) and baseline not in get_args(Baseline):
        raise ValueError(f"baseline is a RunningMean or one of {get_args(Baseline)}, got {baseline!r}")
    if clip is not None and not clip > 0.0:
        raise ValueError(f"clip must be positive, or None for none, got {clip}")
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and not negative, got {eps}")


def _group_mean(grouped: Tensor, mask: Tensor) -> Tensor:
    return grouped.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)


def _baseline(grouped: Tensor, mask: Tensor, baseline: Baseline | RunningMean) -> Tensor:
    if isinstance(baseline, RunningMean):
        value = baseline.value.to(grouped.device)
        baseline.update(grouped, mask)
        return value
    if baseline == "group":
        return _group_mean(grouped, mask)
    if baseline == "leave_one_out":
        return (grouped.sum(1, keepdim=True) - grouped) / (mask.sum(1, keepdim=True) - 1).clamp(min=1)
    if baseline == "batch":
        return mean_of_all(grouped, mask)
    return torch.zeros_like(grouped)


@dataclass(frozen=True)
class GroupNormalizer:
    """``(r - group mean) / (group std + eps)``, clipped: the paper's. See `group_advantages`."""

    group_size: int
    clip: float | None = 3.0
    eps: float = 1e-4

    def __post_init__(self) -> None:
        check_count("group_size", self.group_size)
        check_advantages("group", "group", self.clip, self.eps)

    def __call__(self, rewards: Tensor) -> Tensor:
        return group_advantages(rewards, self.group_size, clip=self.clip, eps=self.eps)


@dataclass(frozen=True)
class LeaveOneOutNormalizer:
    """``r - mean of the others in the group``: unbiased (RLOO, arXiv 2402.14740). See `group_advantages`."""

    group_size: int
    scale: Scale = "none"
    clip: float | None = None
    eps: float = 1e-4

    def __post_init__(self) -> None:
        check_count("group_size", self.group_size)
        check_advantages(self.scale, "leave_one_out", self.clip, self.eps)

    def __call__(self, rewards: Tensor) -> Tensor:
        return group_advantages(
            rewards, self.group_size, scale=self.scale, baseline="leave_one_out", clip=self.clip, eps=self.eps
        )


@dataclass(frozen=True)
class BatchNormalizer:
    """``(r - batch mean) / (batch std + eps)``, over all processes. See `group_advantages`."""

    clip: float | None = 3.0
    eps: float = 1e-4

    def __post_init__(self) -> None:
        check_advantages("batch", "batch", self.clip, self.eps)

    def __call__(self, rewards: Tensor) -> Tensor:
        return group_advantages(rewards, 1, scale="batch", baseline="batch", clip=self.clip, eps=self.eps)
