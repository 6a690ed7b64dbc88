"""The score-function estimator of the integral KL: corruption and scores of samples.

    IKL = integral of omega(t) KL(q_student(., t) || q_teacher(., t)) dt
    grad IKL = E[ omega(t) / pi(t) R(x_t, t) grad log p_student(x) ],   R = log q_student - log q_teacher

The surrogate with this gradient is `integral_kl`. Sources: Diff-Instruct (arXiv 2305.18455); Theorem 3.1 of
DiDi-Instruct (arXiv 2509.25035). The exact value, by enumeration, is ``discrete_distill.exact.integral_kl``.

Shape suffixes: B batch, L length, V vocabulary, N chosen positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from ... import draws
from ...checks import check_count, check_generator, check_mask, check_per_row
from ...process import ConstantWeight, MaskedDiffusion, TimeDistribution, TimeWeight, UniformTime
from ...process.sequences import check_sequences
from ..rewards import Baseline, LogRatioReward, RunningMean, Scale, check_advantages
from .log_ratio import LogRatio, LogRatioEstimator
from .sample_scores import CorruptionScore, SampleScores, mean_score, windowed_sum
from .surrogate import (
    SurrogateOutput,
    check_groups,
    check_surrogate,
    integral_kl,
    log_ratio_advantages,
    path_surrogate,
)


@dataclass(frozen=True)
class ScoreFunctionIntegralKL:
    """Surrogate ``- mean_b omega(t_b) / pi(t_b) A_b log p(path_b)`` with ``A`` the normalised reward ``-R``.

    With ``scale="none"``, no clip, and a baseline of "none" or "leave_one_out" its expected gradient is that of the
    integral KL exactly, if the log-ratio is; see `group_advantages` for the bias of the other choices.

    Baselines, scales and windows read generated positions alone (for whole sequences: those with a generated position),
    so that neither a prompt nor padding changes the gradient.

    Args:
        process: corrupts the samples.
        log_ratio: estimates ``R`` on corrupted samples.
        time_distribution: ``pi``; times are shared by a group.
        weight: ``omega``.
        importance_weight: divide by ``pi(t)``; without it the objective is weighted by ``omega pi``.
        credit: one advantage for the whole "sequence"; or to each "token" the log-ratios at positions up to ``window``
            away from it: far less variance, blind to what a token did to tokens further off (biased).
        window: of token credit; 0 is the token's own position alone.
        window_before: positions before a token that count for it, where they are not as many as behind it: 0 for a
            log-ratio in which a token bears on itself and on those behind it alone, as that of autoregressive networks.
        corruptions: draws of ``(t, x_t)`` for each sample, averaged.
        by: corruption by "time"; by "count" of masks, weighted so that sums over masked positions estimate
            ``log q(x) / p(x)``; or by "parts": the positions are dealt out at random to ``corruptions`` equal parts,
            and each is hidden in turn, so that every token is scored once, given all other parts: then the gradient
            is that of ``sum_i E_q KL(q(x_i | other parts) || p(x_i | other parts))``. For the last two
            ``time_distribution``, ``weight`` and ``importance_weight`` are not used.
        shared_masks: by count or parts, rows of a group are masked in one order, and so at the same positions where
            the same ones are generated; their differences are then less noisy.
        reward: clips raw log-ratios.
        baseline: see `group_advantages`.
        scale: see `group_advantages`.
        advantage_clip: see `group_advantages`.

    Raises:
        ValueError: if there is no corruption, the window is negative, the clip of advantages is not positive, or a
            name is unknown.

    Examples:
        >>> estimator = ScoreFunctionIntegralKL(process, DiscriminatorLogRatio(process, discriminator))
        >>> rollout = IntermediateStateMatcher(process)(student, (8, 16), group_size=4, generator=generator)
        >>> out = estimator(rollout.sequences, rollout.token_log_probs(), group_size=4, generator=generator)
        >>> out.loss.backward()
    """

    process: MaskedDiffusion
    log_ratio: LogRatioEstimator
    time_distribution: TimeDistribution = field(default_factory=UniformTime)
    weight: TimeWeight = field(default_factory=ConstantWeight)
    importance_weight: bool = True
    credit: Literal["sequence", "token"] = "sequence"
    window: int = 0
    window_before: int | None = None
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
        if self.window_before is not None:
            check_count("window_before", self.window_before, minimum=0)
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
        x_0: Tensor,
        token_log_probs: Tensor,
        *,
        group_size: int = 1,
        t: Tensor | None = None,
        generation_mask: Tensor | None = None,
        generator: Generator | None = None,
        s: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> SurrogateOutput:
        """Estimate from samples and the log-probabilities of their paths.

        Args:
            x_0: samples of the student, int64 ``[B, L]``.
            token_log_probs: ``[B, L]``, differentiable, as `Rollout.token_log_probs` gives them.
            group_size: consecutive rows in a group.
            t: coupled times ``[B]``, drawn from ``time_distribution`` elsewhere; drawn here if None.
            generation_mask: bool ``[B, L]``, positions that may be corrupted.
            generator: source of randomness.
            s: `Rollout.last_time` of the samples ``[B]``, passed to the log-ratio.
            model_kwargs: passed to the networks of the log-ratio by keyword.

        Raises:
            TypeError: if ``x_0`` does not hold integers, or ``generation_mask`` booleans.
            ValueError: if the batch is empty, shapes do not fit, the group size does not divide the batch, or a reward
                is not finite.
        """
        check_surrogate(token_log_probs, group_size, generation_mask)
        given: dict[str, Any] = {"generation_mask": generation_mask, "s": s, "model_kwargs": model_kwargs}
        scores = self.score(x_0, group_size=group_size, t=t, generator=generator, **given)
        return self._surrogate_of(token_log_probs, scores)

    def from_log_ratio(
        self,
        log_ratio: LogRatio,
        t: Tensor,
        token_log_probs: Tensor,
        *,
        group_size: int = 1,
        generation_mask: Tensor | None = None,
    ) -> SurrogateOutput:
        """Estimate from a log-ratio that is already there, of one corruption of every sample to times ``t`` ``[B]``.

        Raises:
            ValueError: as in a call.
        """
        check_surrogate(token_log_probs, group_size, generation_mask)
        scores = self.score_of(log_ratio, t, group_size=group_size, generation_mask=generation_mask)
        return self._surrogate_of(token_log_probs, scores)

    def score(
        self,
        x_0: Tensor,
        *,
        group_size: int = 1,
        t: Tensor | None = None,
        generation_mask: Tensor | None = None,
        generator: Generator | None = None,
        s: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> SampleScores:
        """Estimate the log-ratios of samples, the first third of a call, with its arguments. A batch in parts is scored
        part by part; `advantages` of all parts and `surrogate` of each then give the gradient of the whole batch."""
        check_sequences(x_0, generation_mask)
        check_groups(len(x_0), group_size)
        if t is not None:
            check_per_row("t", t, len(x_0))
        given = {"generation_mask": generation_mask, "s": s, "model_kwargs": model_kwargs}
        if self.by == "parts":
            scores = self._scores_by_parts(x_0, group_size, generator, given)
        else:
            levels_MB = self._levels(x_0.shape[0], group_size, x_0.device, generator)
            scores = [self._score(x_0, group_size, t, level, generator, given) for level in levels_MB]
        return mean_score(scores, group_size, generation_mask)

    def score_of(
        self, log_ratio: LogRatio, t: Tensor, *, group_size: int = 1, generation_mask: Tensor | None = None
    ) -> SampleScores:
        """`score` from a log-ratio that is already there; arguments as for `from_log_ratio`."""
        batch = len(log_ratio.per_sequence)
        check_per_row("t", t, batch)
        check_per_row("log_ratio.per_sequence", log_ratio.per_sequence, batch)
        check_mask("generation_mask", generation_mask, log_ratio.per_position.shape, of="log-ratios")
        score = CorruptionScore(log_ratio.per_sequence, log_ratio.per_position, self.time_weight(t))
        return mean_score([score], group_size, generation_mask)

    def advantages(self, scores: Sequence[SampleScores]) -> list[Tensor]:
        """Normalise the rewards of a whole batch: baselines and scales are those of all its parts together, and a
        `RunningMean` takes the batch in once.

        Args:
            scores: of each part of the batch; their lengths ``L`` may differ.

        Returns:
            Of each part ``[B]``, or ``[B, L]`` with token credit.

        Raises:
            ValueError: if there is no part, group sizes differ, or a reward is not finite.
        """
        sizes = sorted({each.group_size for each in scores})
        if len(sizes) != 1:
            raise ValueError(f"scores must be of one or more parts with one group_size, got group sizes {sizes}")
        return log_ratio_advantages(
            [self._credited(each) for each in scores],
            [each.generation_mask for each in scores],
            sizes[0],
            reward=self.reward,
            baseline=self.baseline,
            scale=self.scale,
            clip=self.advantage_clip,
        )

    def surrogate(self, token_log_probs: Tensor, scores: SampleScores, advantages: Tensor) -> SurrogateOutput:
        """Weigh the log-probabilities of paths with their advantages, the last third of a call.

        Args:
            token_log_probs: ``[B, L]``, differentiable.
            scores: of the same samples.
            advantages: of the same samples, as `advantages` gives them.

        Raises:
            ValueError: if shapes do not fit.
        """
        check_surrogate(token_log_probs, scores.group_size, scores.generation_mask)
        if advantages.shape not in (token_log_probs.shape, token_log_probs.shape[:1]):
            raise ValueError(
                f"advantages must be [B] or [B, L] for token_log_probs {list(token_log_probs.shape)}, got "
                f"{list(advantages.shape)}"
            )
        loss = path_surrogate(token_log_probs, advantages, scores.weight)
        return SurrogateOutput(loss, scores.per_sequence, advantages)

    def _surrogate_of(self, token_log_probs: Tensor, scores: SampleScores) -> SurrogateOutput:
        """`integral_kl` of one whole batch."""
        out = integral_kl(
            token_log_probs,
            self._credited(scores),
            time_weight=scores.weight,
            group_size=scores.group_size,
            baseline=self.baseline,
            scale=self.scale,
            clip=self.advantage_clip,
            reward=self.reward,
            generation_mask=scores.generation_mask,
        )
        return out._replace(log_ratio=scores.per_sequence)

    def _levels(self, batch: int, group_size: int, device: torch.device, generator: Generator | None) -> Tensor:
        """``[corruptions, B]`` on ``[0, 1)``: one in each of as many equal cells, shared by a group."""
        check_generator(generator)
        shift = draws.rand((batch // group_size,), device=device, generator=generator).repeat_interleave(group_size)
        cells = torch.arange(self.corruptions, device=device)[:, None]
        return (cells + shift) / self.corruptions

    def _credited(self, scores: SampleScores) -> Tensor:
        """Log-ratio that each sequence ``[B]`` or token ``[B, L]`` is credited with."""
        if self.credit == "sequence":
            return scores.per_sequence
        return windowed_sum(
            torch.where(scores.generation_mask, scores.per_position, 0.0), self.window, self.window_before
        )

    @torch.no_grad()
    def _score(
        self,
        x_0: Tensor,
        group_size: int,
        t: Tensor | None,
        level: Tensor,
        generator: Generator | None,
        given: Mapping[str, Any],
    ) -> CorruptionScore:
        """Of one corruption of every sample; the log-ratio is passed what is ``given``."""
        generation_mask = given["generation_mask"]
        if self.by == "count":
            x_t, level_t, weight_B = self.process.draw_corruption(
                x_0,
                by="count",
                generation_mask=generation_mask,
                level=level,
                generator=generator,
                group_size=group_size if self.shared_masks else 1,
            )
            out = self.log_ratio(x_t, level_t, x_0=x_0, **given)
            return CorruptionScore(
                weight_B * out.per_sequence, weight_B[:, None] * out.per_position, torch.ones_like(weight_B)
            )
        if t is None:
            t = self.time_distribution.sample(x_0.shape[0] // group_size, device=x_0.device, generator=generator).t
            t = t.repeat_interleave(group_size)
        x_t = self.process.corrupt(x_0, t, generation_mask=generation_mask, generator=generator)
        out = self.log_ratio(x_t, t, x_0=x_0, **given)
        return CorruptionScore(out.per_sequence, out.per_position, self.time_weight(t))

    @torch.no_grad()
    def _scores_by_parts(
        self,
        x_0: Tensor,
        group_size: int,
        generator: Generator | None,
        given: Mapping[str, Any],
    ) -> list[CorruptionScore]:
        """Every part hidden in turn; a part counts as often as there are parts, so that their mean is the whole sum."""
        generation_mask = given["generation_mask"]
        parts_BL = self.process.draw_parts(
            x_0,
            self.corruptions,
            generation_mask=generation_mask,
            generator=generator,
            group_size=group_size if self.shared_masks else 1,
        )
        size = self.process.num_generated(x_0, generation_mask)
        scores = []
        for part in range(self.corruptions):
            hidden = parts_BL == part
            x_t = torch.where(hidden, self.process.mask_token_id, x_0)
            t = self.process.time_of_count(hidden.sum(1), size)
            out = self.log_ratio(x_t, t, x_0=x_0, **given)
            weight = torch.ones_like(out.per_sequence)
            scores.append(
                CorruptionScore(self.corruptions * out.per_sequence, self.corruptions * out.per_position, weight)
            )
        return scores

    def time_weight(self, t: Tensor) -> Tensor:
        """``omega(t) / pi(t)``, or ``omega(t)`` without the importance weight; elementwise."""
        return self.weight(t) / self.time_distribution.density(t) if self.importance_weight else self.weight(t)
