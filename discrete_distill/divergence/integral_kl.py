"""The integral KL divergence and its score-function estimator.

    IKL = integral of omega(t) KL(q_student(., t) || q_teacher(., t)) dt
    grad IKL = E[ omega(t) / pi(t) R(z_t, t) grad log p_student(x) ],   R = log q_student - log q_teacher

Sources: Diff-Instruct (arXiv 2305.18455); Theorem 3.1 of DiDi-Instruct (arXiv 2509.25035). The exact value, by
enumeration, is ``discrete_distill.exact.integral_kl``.

Shape suffixes: B batch, L length, V vocabulary, N chosen rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..process import ConstantWeight, MaskedDiffusion, TimeLaw, TimeWeight, UniformTime
from ..rewards import Baseline, LogRatioReward, Scale, group_advantages
from .log_ratio import LogRatioEstimator


class SurrogateOutput(NamedTuple):
    """A scalar whose gradient is the estimate, and what it was made of.

    Attributes:
        loss: scalar; its value means nothing, its gradient goes down the integral KL.
        log_ratio: ``[B]``, nats, before clipping.
        advantages: ``[B]``, of rewards: positive where the sample should become more probable.
    """

    loss: Tensor
    log_ratio: Tensor
    advantages: Tensor


@dataclass(frozen=True)
class ScoreFunctionIntegralKL:
    """Surrogate ``- mean_b omega(t_b) / pi(t_b) A_b log p(path_b)`` with ``A`` the normalised reward ``-R``.

    With ``scale="none"``, no clip, and a baseline of "none" or "leave_one_out" its expected gradient is that of the
    integral KL exactly, if the log-ratio is; `group_advantages` says what the other choices cost.

    Args:
        process: corrupts the samples.
        log_ratio: estimates ``R`` on corrupted samples.
        time_law: ``pi``; times are shared by a group.
        weight: ``omega``.
        importance_weight: divide by ``pi(t)``; without it the objective is weighted by ``omega pi``.
        credit: one advantage for the whole "sequence"; or to each "token" the log-ratios at positions up to ``window``
            away from it: far less variance, blind to what a token did to tokens further off (biased).
        window: of token credit; 0 is the token's own position alone.
        corruptions: draws of ``(t, z_t)`` for each sample, averaged.
        by: corruption by "time", or by "count" of masks, weighted so that sums over masked positions estimate
            ``log q(x) / p(x)``; then ``time_law``, ``weight`` and ``importance_weight`` are not used.
        reward: clips raw log-ratios.
        baseline: see `group_advantages`.
        scale: see `group_advantages`.
        advantage_clip: see `group_advantages`.

    Raises:
        ValueError: if there is no corruption, the window is negative, or ``credit`` or ``by`` is unknown.
    """

    process: MaskedDiffusion
    log_ratio: LogRatioEstimator
    time_law: TimeLaw = field(default_factory=UniformTime)
    weight: TimeWeight = field(default_factory=ConstantWeight)
    importance_weight: bool = True
    credit: Literal["sequence", "token"] = "sequence"
    window: int = 0
    corruptions: int = 1
    by: Literal["time", "count"] = "time"
    reward: LogRatioReward = field(default_factory=LogRatioReward)
    baseline: Baseline = "leave_one_out"
    scale: Scale = "none"
    advantage_clip: float | None = None

    def __post_init__(self) -> None:
        if self.corruptions < 1:
            raise ValueError(f"corruptions must be at least 1, got {self.corruptions}")
        if self.credit not in ("sequence", "token"):
            raise ValueError(f'credit is "sequence" or "token", got {self.credit!r}')
        if self.window < 0:
            raise ValueError(f"window must not be negative, got {self.window}")
        if self.by not in ("time", "count"):
            raise ValueError(f'by is "time" or "count", got {self.by!r}')

    def __call__(
        self,
        x: Tensor,
        token_log_probs: Tensor,
        *,
        group_size: int = 1,
        t: Tensor | None = None,
        movable: Tensor | None = None,
        generator: Generator | None = None,
        **cond: Any,
    ) -> SurrogateOutput:
        """Estimate from samples and the log-probabilities of their paths.

        Args:
            x: samples of the student, int64 ``[B, L]``.
            token_log_probs: ``[B, L]``, differentiable, as `Rollout.token_log_probs` gives them.
            group_size: consecutive rows in a group.
            t: coupled times ``[B]``, drawn from ``time_law`` elsewhere; drawn here if None.
            movable: bool ``[B, L]``, positions that may be corrupted.
            generator: source of randomness.
            **cond: passed to the log-ratio.

        Raises:
            ValueError: if the group size does not divide the batch.
        """
        if group_size < 1 or x.shape[0] % group_size:
            raise ValueError(f"group_size {group_size} does not divide the batch of {x.shape[0]} samples")
        levels_MB = self._levels(x.shape[0], group_size, x.device, generator)
        scores = [self._score(x, group_size, t, level, movable, generator, cond) for level in levels_MB]
        weight_MB = torch.stack([score[2] for score in scores])
        weight_B = weight_MB.mean(0)
        # Corruptions at different times count by their weights: weight and log-ratio are not independent.
        share_MB = weight_MB / weight_MB.sum(0).clamp(min=torch.finfo(weight_MB.dtype).tiny)
        ratio_B = (share_MB * torch.stack([score[0] for score in scores])).sum(0)
        ratio_BL = (share_MB[:, :, None] * torch.stack([score[1] for score in scores])).sum(0)
        advantages_B = self._advantages(ratio_B, group_size)
        if self.credit == "sequence":
            surrogate_B = -weight_B * advantages_B * token_log_probs.sum(1)
        else:
            advantages_BL = self._position_advantages(windowed_sum(ratio_BL, self.window), group_size)
            surrogate_B = -weight_B * (advantages_BL * token_log_probs).sum(1)
        return SurrogateOutput(surrogate_B.mean(), ratio_B, advantages_B)

    def _levels(self, batch: int, group_size: int, device: torch.device, generator: Generator | None) -> Tensor:
        """``[corruptions, B]`` on ``[0, 1)``: one in each of as many equal cells, shared by a group."""
        shift = torch.rand(batch // group_size, device=device, generator=generator).repeat_interleave(group_size)
        cells = torch.arange(self.corruptions, device=device)[:, None]
        return (cells + shift) / self.corruptions

    def _advantages(self, ratio_B: Tensor, group_size: int) -> Tensor:
        return group_advantages(
            self.reward(ratio_B),
            group_size,
            scale=self.scale,
            baseline=self.baseline,
            clip=self.advantage_clip,
        )

    def _position_advantages(self, ratio_BL: Tensor, group_size: int) -> Tensor:
        """Advantages of every position, each compared within its group; one scale for all positions."""
        batch, length = ratio_BL.shape
        grouped = ratio_BL.view(-1, group_size, length).transpose(1, 2)
        advantages = self._advantages(grouped.flatten(), group_size)
        return advantages.view(grouped.shape).transpose(1, 2).reshape(batch, length)

    @torch.no_grad()
    def _score(
        self,
        x: Tensor,
        group_size: int,
        t: Tensor | None,
        level: Tensor,
        movable: Tensor | None,
        generator: Generator | None,
        cond: dict[str, Any],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-ratio ``[B]``, at positions ``[B, L]``, and weight ``[B]``, of one corruption of every sample."""
        if self.by == "count":
            z_t, level_t, weight_B = self.process.draw_corruption(
                x, by="count", movable=movable, level=level, generator=generator
            )
            out = self.log_ratio(z_t, level_t, x=x, movable=movable, **cond)
            return (
                weight_B * out.per_sequence,
                weight_B[:, None] * out.per_position,
                torch.ones_like(weight_B),
            )
        if t is None:
            t = self.time_law.sample(x.shape[0] // group_size, device=x.device, generator=generator).t
            t = t.repeat_interleave(group_size)
        z_t = self.process.corrupt(x, t, movable=movable, generator=generator)
        out = self.log_ratio(z_t, t, x=x, movable=movable, **cond)
        return out.per_sequence, out.per_position, self.time_weight(t)

    def time_weight(self, t: Tensor) -> Tensor:
        """``omega(t) / pi(t)``, or ``omega(t)`` without the importance weight; elementwise."""
        return self.weight(t) / self.time_law.density(t) if self.importance_weight else self.weight(t)


def windowed_sum(values_BL: Tensor, window: int) -> Tensor:
    """Sum over positions at most ``window`` away, ``[B, L]``."""
    padded = F.pad(values_BL, (window + 1, window))
    cumulative = padded.cumsum(1)
    return cumulative[:, 2 * window + 1 :] - cumulative[:, : -2 * window - 1]


def vocabulary_surrogate(log_probs_NV: Tensor, log_ratio_NV: Tensor, weight_N: Tensor | None = None) -> Tensor:
    """Credit over the whole vocabulary: ``sum_n w_n sum_v p(v) r_n(v)``, the gradient through ``p`` alone.

    For a position ``i`` drawn independently of the others given its state, with the others ``x_S`` visible, the
    derivative of the KL of laws of ``(x_S, x_i)`` in ``p(v)`` is ``log q(v | x_S) - log p_teacher(v | x_S)`` plus what
    does not depend on ``v``: every token is scored, and no draw of ``x_i`` adds variance.

    Args:
        log_probs_NV: the student's log-probabilities, ``-inf`` allowed.
        log_ratio_NV: ``log q(v | x_S) - log p_teacher(v | x_S)``, finite where the student has mass.
        weight_N: weight of each row; 1 by default.

    Returns:
        Scalar.
    """
    probs_NV = log_probs_NV.exp()
    cost_N = (probs_NV * torch.where(probs_NV > 0, log_ratio_NV.detach(), 0.0)).sum(-1)
    return (cost_N if weight_N is None else weight_N * cost_N).sum()
