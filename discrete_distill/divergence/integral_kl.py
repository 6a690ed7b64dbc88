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
from ..process.masking import check_sequences
from ..rewards import Baseline, LogRatioReward, RunningMean, Scale, check_advantages, group_advantages
from .log_ratio import LogRatio, LogRatioEstimator


class SurrogateOutput(NamedTuple):
    """A scalar whose gradient is the estimate, and what it was made of.

    Attributes:
        loss: scalar; its value means nothing, its gradient goes down the integral KL.
        log_ratio: ``[B]``, nats, before clipping.
        advantages: of rewards, ``[B]``, or ``[B, L]`` with token credit: positive where what was drawn should become
            more probable, 0 where nothing was drawn.
    """

    loss: Tensor
    log_ratio: Tensor
    advantages: Tensor


class _Score(NamedTuple):
    """Log-ratio of each sequence ``[B]`` and at its positions ``[B, L]``, and the weight of its time ``[B]``."""

    per_sequence: Tensor
    per_position: Tensor
    weight: Tensor


@dataclass(frozen=True)
class ScoreFunctionIntegralKL:
    """Surrogate ``- mean_b omega(t_b) / pi(t_b) A_b log p(path_b)`` with ``A`` the normalised reward ``-R``.

    With ``scale="none"``, no clip, and a baseline of "none" or "leave_one_out" its expected gradient is that of the
    integral KL exactly, if the log-ratio is; `group_advantages` says what the other choices cost.

    Baselines, scales and windows read movable positions alone (for whole sequences: those with a movable position), so
    that neither a prompt nor padding changes the gradient.

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
        by: corruption by "time"; by "count" of masks, weighted so that sums over masked positions estimate
            ``log q(x) / p(x)``; or by "parts": the positions are dealt out at random to ``corruptions`` equal parts,
            and each is hidden in turn, so that every token is scored once, given all other parts: then the gradient
            is that of ``sum_i E_q KL(q(x_i | other parts) || p(x_i | other parts))``. For the last two ``time_law``,
            ``weight`` and ``importance_weight`` are not used.
        shared_masks: by count or parts, rows of a group are masked in one order, and so at the same positions where
            the same ones are movable; their differences are then less noisy.
        reward: clips raw log-ratios.
        baseline: see `group_advantages`.
        scale: see `group_advantages`.
        advantage_clip: see `group_advantages`.

    Raises:
        ValueError: if there is no corruption, the window is negative, the clip of advantages is not positive, or a
            name is unknown.
    """

    process: MaskedDiffusion
    log_ratio: LogRatioEstimator
    time_law: TimeLaw = field(default_factory=UniformTime)
    weight: TimeWeight = field(default_factory=ConstantWeight)
    importance_weight: bool = True
    credit: Literal["sequence", "token"] = "sequence"
    window: int = 0
    corruptions: int = 1
    by: Literal["time", "count", "parts"] = "time"
    shared_masks: bool = False
    reward: LogRatioReward = field(default_factory=LogRatioReward)
    baseline: Baseline | RunningMean = "leave_one_out"
    scale: Scale = "none"
    advantage_clip: float | None = None

    def __post_init__(self) -> None:
        if self.corruptions < 1:
            raise ValueError(f"corruptions must be at least 1, got {self.corruptions}")
        if self.credit not in ("sequence", "token"):
            raise ValueError(f'credit is "sequence" or "token", got {self.credit!r}')
        if self.window < 0:
            raise ValueError(f"window must not be negative, got {self.window}")
        if self.by not in ("time", "count", "parts"):
            raise ValueError(f'by is "time", "count" or "parts", got {self.by!r}')
        check_advantages(self.scale, self.baseline, self.advantage_clip)

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on needs: the state of a `RunningMean`, nothing for any other baseline."""
        return self.baseline.state_dict() if isinstance(self.baseline, RunningMean) else {}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from `state_dict`.

        Raises:
            ValueError: if it is of another kind of baseline.
        """
        if bool(state) != isinstance(self.baseline, RunningMean):
            raise ValueError(f"the state {state} is of another baseline than {self.baseline!r}; make it as it was")
        if isinstance(self.baseline, RunningMean):
            self.baseline.load_state_dict(state)

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
            TypeError: if ``x`` does not hold integers, or ``movable`` booleans.
            ValueError: if the batch is empty, shapes do not fit, the group size does not divide the batch, or a reward
                is not finite.
        """
        check_sequences(x, movable)
        _check_batch(token_log_probs, group_size, movable)
        if self.by == "parts":
            scores = self._scores_by_parts(x, group_size, movable, generator, cond)
        else:
            levels_MB = self._levels(x.shape[0], group_size, x.device, generator)
            scores = [self._score(x, group_size, t, level, movable, generator, cond) for level in levels_MB]
        return self._surrogate(scores, token_log_probs, group_size, movable)

    def from_log_ratio(
        self,
        log_ratio: LogRatio,
        t: Tensor,
        token_log_probs: Tensor,
        *,
        group_size: int = 1,
        movable: Tensor | None = None,
    ) -> SurrogateOutput:
        """Estimate from a log-ratio that is already there, of one corruption of every sample to times ``t`` ``[B]``.

        Raises:
            ValueError: as in a call.
        """
        _check_batch(token_log_probs, group_size, movable)
        score = _Score(log_ratio.per_sequence, log_ratio.per_position, self.time_weight(t))
        return self._surrogate([score], token_log_probs, group_size, movable)

    def _surrogate(
        self, scores: list[_Score], token_log_probs: Tensor, group_size: int, movable: Tensor | None
    ) -> SurrogateOutput:
        if movable is None:
            movable = torch.ones_like(token_log_probs, dtype=torch.bool)
        weight_MB = torch.stack([score.weight for score in scores])
        weight_B = weight_MB.mean(0)
        # Corruptions at different times count by their weights: weight and log-ratio are not independent.
        share_MB = weight_MB / weight_MB.sum(0).clamp(min=torch.finfo(weight_MB.dtype).tiny)
        ratio_B = (share_MB * torch.stack([score.per_sequence for score in scores])).sum(0)
        ratio_BL = (share_MB[:, :, None] * torch.stack([score.per_position for score in scores])).sum(0)
        if self.credit == "sequence":
            advantages = self._advantages(ratio_B, group_size, movable.any(1))
            surrogate_B = -weight_B * advantages * token_log_probs.sum(1)
        else:
            ratio_BL = torch.where(movable, ratio_BL, 0.0)
            advantages = self._position_advantages(windowed_sum(ratio_BL, self.window), group_size, movable)
            surrogate_B = -weight_B * (advantages * token_log_probs).sum(1)
        return SurrogateOutput(surrogate_B.mean(), ratio_B, advantages)

    def _levels(self, batch: int, group_size: int, device: torch.device, generator: Generator | None) -> Tensor:
        """``[corruptions, B]`` on ``[0, 1)``: one in each of as many equal cells, shared by a group."""
        shift = torch.rand(batch // group_size, device=device, generator=generator).repeat_interleave(group_size)
        cells = torch.arange(self.corruptions, device=device)[:, None]
        return (cells + shift) / self.corruptions

    def _advantages(self, ratio_N: Tensor, group_size: int, loss_mask: Tensor) -> Tensor:
        return group_advantages(
            self.reward(ratio_N),
            group_size,
            scale=self.scale,
            baseline=self.baseline,
            clip=self.advantage_clip,
            loss_mask=loss_mask,
        )

    def _position_advantages(self, ratio_BL: Tensor, group_size: int, movable: Tensor) -> Tensor:
        """Advantages of every position, each compared within its group; one scale for all positions."""
        batch, length = ratio_BL.shape
        ratio, mask = (each.view(-1, group_size, length).transpose(1, 2) for each in (ratio_BL, movable))
        try:
            advantages = self._advantages(ratio.flatten(), group_size, mask.flatten())
        except ValueError as error:
            # Asked only now, since each question waits for the device.
            wrong = movable & ~self.reward(ratio_BL).isfinite()
            if not bool(wrong.any()):
                raise
            sequence, position = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"sequence {sequence}, position {position}: the log-ratio is {ratio_BL[sequence, position].item()}; "
                "look for NaN in the networks that give it, or clip it with a LogRatioReward"
            ) from error
        return advantages.view(ratio.shape).transpose(1, 2).reshape(batch, length)

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
    ) -> _Score:
        """Of one corruption of every sample."""
        if self.by == "count":
            z_t, level_t, weight_B = self.process.draw_corruption(
                x,
                by="count",
                movable=movable,
                level=level,
                generator=generator,
                group_size=group_size if self.shared_masks else 1,
            )
            out = self.log_ratio(z_t, level_t, x=x, movable=movable, **cond)
            return _Score(weight_B * out.per_sequence, weight_B[:, None] * out.per_position, torch.ones_like(weight_B))
        if t is None:
            t = self.time_law.sample(x.shape[0] // group_size, device=x.device, generator=generator).t
            t = t.repeat_interleave(group_size)
        z_t = self.process.corrupt(x, t, movable=movable, generator=generator)
        out = self.log_ratio(z_t, t, x=x, movable=movable, **cond)
        return _Score(out.per_sequence, out.per_position, self.time_weight(t))

    @torch.no_grad()
    def _scores_by_parts(
        self, x: Tensor, group_size: int, movable: Tensor | None, generator: Generator | None, cond: dict[str, Any]
    ) -> list[_Score]:
        """Every part hidden in turn; a part counts as often as there are parts, so that their mean is the whole sum."""
        parts_BL = self.process.draw_parts(
            x,
            self.corruptions,
            movable=movable,
            generator=generator,
            group_size=group_size if self.shared_masks else 1,
        )
        size = self.process.num_movable(x, movable)
        scores = []
        for part in range(self.corruptions):
            hidden = parts_BL == part
            z_t = torch.where(hidden, self.process.mask_token_id, x)
            t = self.process.time_of_count(hidden.sum(1), size)
            out = self.log_ratio(z_t, t, x=x, movable=movable, **cond)
            weight = torch.ones_like(out.per_sequence)
            scores.append(_Score(self.corruptions * out.per_sequence, self.corruptions * out.per_position, weight))
        return scores

    def time_weight(self, t: Tensor) -> Tensor:
        """``omega(t) / pi(t)``, or ``omega(t)`` without the importance weight; elementwise."""
        return self.weight(t) / self.time_law.density(t) if self.importance_weight else self.weight(t)


def _check_batch(token_log_probs: Tensor, group_size: int, movable: Tensor | None) -> None:
    if token_log_probs.dim() != 2 or not token_log_probs.numel():
        raise ValueError(
            f"token_log_probs must be [batch, length] of one sequence and one token or more, got "
            f"{list(token_log_probs.shape)}"
        )
    batch = len(token_log_probs)
    if group_size < 1 or batch % group_size:
        raise ValueError(f"group_size {group_size} does not divide the batch of {batch} samples")
    if movable is not None and movable.shape != token_log_probs.shape:
        raise ValueError(
            f"movable has shape {list(movable.shape)}, token_log_probs {list(token_log_probs.shape)}; they must agree"
        )


def windowed_sum(values_BL: Tensor, window: int) -> Tensor:
    """Sum over positions at most ``window`` away, ``[B, L]``. Nothing further off enters, not by rounding either."""
    return F.pad(values_BL, (window, window)).unfold(1, 2 * window + 1, 1).sum(-1)


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
    cost_N = vocabulary_cost(log_probs_NV, log_ratio_NV)
    return (cost_N if weight_N is None else weight_N * cost_N).sum()


def vocabulary_cost(log_probs_NV: Tensor, log_ratio_NV: Tensor) -> Tensor:
    """``sum_v p(v) r_n(v)`` of every row, ``[N]``; arguments as for `vocabulary_surrogate`."""
    probs_NV = log_probs_NV.exp()
    return (probs_NV * torch.where(probs_NV > 0, log_ratio_NV.detach(), 0.0)).sum(-1)
