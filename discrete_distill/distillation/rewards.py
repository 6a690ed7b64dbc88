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

from ..checks import check_choice, check_count, check_mask
from ..distributed.collectives import mean_of_all, sum_of_all

Scale = Literal["group", "batch", "none"]
Baseline = Literal["group", "leave_one_out", "batch", "none"]
Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]


@dataclass(frozen=True)
class LogRatioReward:
    """``r = -clip(log q_student / q_teacher, -clip, clip)``.

    Args:
        clip: maximum size of a raw log-ratio, nats (paper: 8); ``inf`` for none. Clipping biases the gradient.

    Raises:
        ValueError: if ``clip`` is not positive.

    Examples:
        >>> LogRatioReward(clip=8.0)(torch.tensor([-2.0, 20.0]))
        tensor([ 2., -8.])
    """

    clip: float = float("inf")

    def __post_init__(self) -> None:
        if not self.clip > 0.0:
            raise ValueError(f"clip must be positive, got {self.clip}")

    def __call__(self, log_ratio: Tensor) -> Tensor:
        return -log_ratio.clamp(-self.clip, self.clip)


class RunningMean:
    """Subtract a running mean of earlier batches: ``b <- decay b + (1 - decay) mean(r)``.

    The baseline does not depend on the batch that it is subtracted from, so the gradient stays unbiased (REINFORCE with
    a reinforcement baseline, Williams 1992).

    It has a state: use one instance for each stream of rewards. The first batch is compared with 0. Rewards that are
    not finite are left out and counted, and a batch without a finite reward is not taken in.

    Args:
        decay: in ``[0, 1)``; the weight of older batches falls by it with each batch.

    Attributes:
        batches: batches taken in, over all processes together.
        skipped: rewards that were not finite.

    Raises:
        ValueError: if ``decay`` is outside.

    Examples:
        >>> baseline = RunningMean(decay=0.5)
        >>> for rewards in ([1.0, 3.0], [1.0, 5.0]):  # The mean of the first batch is subtracted from the second.
        ...     print(group_advantages(rewards, 1, baseline=baseline, scale="none"))
        tensor([1., 3.])
        tensor([-1.,  3.])
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
    rewards: Any,
    group_size: int,
    *,
    scale: Scale = "group",
    baseline: Baseline | RunningMean = "group",
    clip: float | None = None,
    eps: float = 1e-4,
    loss_mask: Tensor | None = None,
    reward_weights: Sequence[float] | Tensor | None = None,
    aggregation: Aggregation = "sum_then_normalize",
) -> Tensor:
    """``(r - baseline) / (scale + eps)``, clipped; GRPO's form (arXiv 2402.03300), as in DiDi-Instruct.

    Without scale and clip the gradient stays unbiased for "leave_one_out", a `RunningMean` and "none"; "group" and
    "batch" means contain the sample itself and shrink the gradient by ``1 - 1/n``. Scaling by a standard deviation and
    clipping bias it, and where a group hardly differs, dividing by its own standard deviation amplifies noise.

    Baselines and scales are computed in fp64, so that equal rewards have advantages of exactly 0. The scale is the
    population standard deviation, that of ``G`` samples. TRL divides by the unbiased one, of ``G - 1``: our advantages
    are its times ``sqrt(G / (G - 1))``, 1.155 for ``G = 4``.

    Args:
        rewards: ``[B]``, or ``[B, R]`` for ``R`` rewards of each sample; groups of consecutive rows, and a group never
            straddles processes. Numbers or booleans, as a tensor, an array of numpy or a list.
        group_size: must divide ``B``.
        scale: population standard deviation of the "group", of the "batch" (after the baseline; over all processes), or
            "none".
        baseline: mean of the "group", of the other members ("leave_one_out"; 0 where there is no other), of the "batch"
            (over all processes), of earlier batches (a `RunningMean`, which then takes this batch in), or "none".
        clip: maximum size of an advantage (paper: 3.0).
        eps: added to the standard deviation; not negative.
        loss_mask: bool ``[B]``, true at rewards that count (all, by default). The others enter no baseline and no
            scale, and their advantage is 0.
        reward_weights: of ``R`` rewards, ``[R]``; all 1 by default.
        aggregation: of ``R`` rewards: "sum_then_normalize" normalises their weighted sum (GRPO), so that a reward of
            greater spread has more influence; "normalize_then_sum" normalises each by itself and sums the weighted
            advantages (GDPO, arXiv 2601.05242), so that the weights alone decide how much each counts.

    Returns:
        ``[B]``, without gradient; in the precision of the rewards, fp32 for integers and booleans.

    Raises:
        TypeError: if the rewards are no numbers.
        ValueError: if the group size does not divide the batch, is 1 where a group of others is needed, a reward that
            counts is not finite (the sample is named), there is not one weight for each reward, ``eps`` or ``clip`` is
            out of range, a `RunningMean` is to be the baseline of several rewards, or a name is unknown.

    Examples:
        >>> group_advantages([True, False], 2, eps=0.0).tolist()
        [1.0, -1.0]
        >>> rewards = [[1.0, 30.0], [0.0, 10.0]]
        >>> group_advantages(rewards, 2, aggregation="normalize_then_sum", reward_weights=[1.0, 0.5], eps=0.0).tolist()
        [1.5, -1.5]
    """
    check_advantages(scale, baseline, clip, eps)
    check_choice("aggregation", aggregation, get_args(Aggregation))
    rewards = _as_rewards(rewards)
    if rewards.dim() == 1 and reward_weights is not None:
        rewards = rewards[:, None]
    if rewards.dim() == 2:
        weights_R = _weights(reward_weights, rewards)
        _check_finite(rewards, loss_mask)
        given: dict[str, Any] = {"scale": scale, "baseline": baseline, "eps": eps, "loss_mask": loss_mask}
        dtype = rewards.dtype if rewards.is_floating_point() else torch.float32
        if aggregation == "sum_then_normalize":
            total_B = rewards.double().where(_counted(rewards, loss_mask), 0.0) @ weights_R
            return group_advantages(total_B, group_size, clip=clip, **given).to(dtype)
        if isinstance(baseline, RunningMean):
            raise ValueError(
                f"a RunningMean follows one stream of rewards, and there are {rewards.shape[1]}; take another "
                'baseline, or aggregation="sum_then_normalize"'
            )
        each_BR = torch.stack([group_advantages(each, group_size, **given) for each in rewards.double().unbind(1)], 1)
        advantages = (each_BR @ weights_R).to(dtype)
        return advantages if clip is None else advantages.clamp(-clip, clip)
    if group_size < 1 or rewards.shape[0] % group_size:
        raise ValueError(f"group_size {group_size} does not divide the batch of {rewards.shape[0]} rewards")
    if baseline == "leave_one_out" and group_size < 2:
        raise ValueError("leave_one_out needs a group_size of 2 or more, got 1")
    if loss_mask is None:
        loss_mask = torch.ones_like(rewards, dtype=torch.bool)
    check_mask("loss_mask", loss_mask, rewards.shape, of="rewards")
    _check_finite(rewards, loss_mask)
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


def _as_rewards(rewards: Any) -> Tensor:
    try:
        found = torch.as_tensor(rewards)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"rewards are numbers or booleans, one a sample [B] or R a sample [B, R], got {rewards!r}"
        ) from error
    if found.is_complex() or found.dim() not in (1, 2) or (found.dim() == 2 and not found.shape[1]):
        raise ValueError(
            f"rewards are one number a sample, [B], or R, [B, R], got {found.dtype} of shape {tuple(found.shape)}"
        )
    return found


def _weights(weights: Any, rewards: Tensor) -> Tensor:
    """Weights of the rewards, fp64 ``[R]``, on their device."""
    count = rewards.shape[1]
    found = torch.as_tensor([1.0] * count if weights is None else weights, dtype=torch.double, device=rewards.device)
    if found.shape != (count,) or not bool(found.isfinite().all()):
        raise ValueError(f"reward_weights are {count} finite numbers, one for each reward, got {weights}")
    return found


def _counted(rewards: Tensor, loss_mask: Tensor | None) -> Tensor:
    """Bool of the shape of the rewards, true where a sample counts."""
    check_mask("loss_mask", loss_mask, rewards.shape[:1], of="samples")
    mask = torch.ones_like(rewards[..., :1] if rewards.dim() == 2 else rewards, dtype=torch.bool)
    counted = mask if loss_mask is None else mask & (loss_mask if rewards.dim() == 1 else loss_mask[:, None])
    return counted.expand_as(rewards)


def _check_finite(rewards: Tensor, loss_mask: Tensor | None) -> None:
    wrong = _counted(rewards, loss_mask) & ~rewards.isfinite()
    if bool(wrong.any()):
        sample, *which = wrong.nonzero()[0].tolist()
        name = f"reward {which[0]}" if which else "the reward"
        value = rewards[sample].tolist() if not which else rewards[sample, which[0]].item()
        raise ValueError(f"{name} of sample {sample} is {value}; rewards must be finite")


def check_advantages(scale: str, baseline: str | RunningMean, clip: float | None, eps: float = 1e-4) -> None:
    """Refuse choices of `group_advantages` that mean nothing."""
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
    """``(r - group mean) / (group std + eps)``, clipped: the paper's. See `group_advantages`.

    Examples:
        >>> GroupNormalizer(2, eps=0.0)(torch.tensor([1.0, 5.0, 2.0, 3.0]))
        tensor([-1.,  1., -1.,  1.])
    """

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
    """``r - mean of the others in the group``: unbiased (RLOO, arXiv 2402.14740). See `group_advantages`.

    Examples:
        >>> LeaveOneOutNormalizer(2)(torch.tensor([1.0, 5.0, 2.0, 3.0]))
        tensor([-4.,  4., -1.,  1.])
    """

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
    """``(r - batch mean) / (batch std + eps)``, over all processes. See `group_advantages`.

    Examples:
        >>> BatchNormalizer(eps=0.0)(torch.tensor([1.0, 1.0, 3.0, 3.0]))
        tensor([-1., -1.,  1.,  1.])
    """

    clip: float | None = 3.0
    eps: float = 1e-4

    def __post_init__(self) -> None:
        check_advantages("batch", "batch", self.clip, self.eps)

    def __call__(self, rewards: Tensor) -> Tensor:
        return group_advantages(rewards, 1, scale="batch", baseline="batch", clip=self.clip, eps=self.eps)
