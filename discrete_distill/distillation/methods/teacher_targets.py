"""Predictions of a teacher along several steps from given states, each kept where the step reveals a token.

Shape suffixes: B batch, L length, V vocabulary, N masked positions, R positions of one step, K teacher steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from ...process import Denoiser, MaskedDiffusion
from ...samplers.positions import Positions, positions_at
from ...samplers.state import SamplerState
from .corrupted_data import MaskedBatch


@dataclass
class TeacherTargets(MaskedBatch):
    """Targets of the teacher at the masked positions of corrupted sequences: the rollout of `SDTT`.

    Attributes:
        x_s: the teacher's sequences at the end of its steps, int64 ``[B, L]``.
        s: times of ``x_s``, ``[B]``.
        log_probs_NV: fp32 log-probabilities at the masks of the loss, in flattened order; -inf at the mask.

    Examples:
        >>> method = SDTT(networks, process, SDTTConfig(teacher_steps=4, rounds=1))
        >>> rollout = method.rollout(reference=data, generator=generator)
        >>> rollout.log_probs_NV.exp()[0]
        tensor([0.1250, 0.1250, 0.1250, 0.1250, 0.1250, 0.1250, 0.1250, 0.1250, 0.0000])
    """

    x_s: Tensor
    s: Tensor
    log_probs_NV: Tensor

    @property
    def sequences(self) -> Tensor:
        """``x_s``."""
        return self.x_s

    def without_logits(self) -> TeacherTargets:
        """A copy without the log-probabilities."""
        return replace(self, log_probs_NV=self.log_probs_NV[:0].clone())


@torch.no_grad()
def teacher_targets(
    process: MaskedDiffusion,
    teacher: Denoiser,
    x_t: Tensor,
    times: Tensor,
    *,
    t: Tensor,
    s: Tensor,
    generation_mask: Tensor | None = None,
    attention_mask: Tensor | None = None,
    generator: Generator | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> TeacherTargets:
    """Take the teacher's steps from ``x_t``. The target of a masked position is the prediction of the step that reveals
    it, or of the last step.

    Args:
        process: mask and schedule.
        teacher: any denoiser; its mode is the caller's.
        x_t: int64 ``[B, L]``.
        times: ``[K + 1, B]``, from the first to the last of the teacher's times.
        t: times of ``x_t`` for the student, ``[B]``.
        s: times of the end for the student, ``[B]``.
        generation_mask: bool ``[B, L]``; masks elsewhere stay, and have no target. All real positions by default.
        attention_mask: bool ``[B, L]``, true at real tokens.
        generator: source of randomness.
        model_kwargs: passed to the teacher by keyword.
    """
    state = SamplerState(
        process,
        teacher,
        x_init=x_t,
        attention_mask=attention_mask,
        generation_mask=generation_mask,
        model_kwargs=model_kwargs,
        generator=generator,
    )
    wanted = state.masked().clone()
    predictions: list[tuple[Tensor, Tensor]] = []
    last = len(times) - 2
    for step in range(last + 1):
        masked = state.masked()
        reveals = state.unmask_draws(step, process.unmask_probability(times[step], times[step + 1])) & masked
        positions = positions_at(masked if step == last else reveals)
        if not positions:
            continue
        logits_RV = state.logits(positions, times[step], times[step + 1], one_time=False)(slice(None))
        predictions.append((positions.index, process.masked_log_probs(logits_RV)))
        shown = reveals.flatten()[positions.index]
        drawn = state.draw_tokens(logits_RV[shown], positions.index[shown], step)
        state.write(positions.index[shown], drawn.tokens[:, 0], drawn.log_probs[:, 0])
    if not predictions:  # Nothing was masked; a call of the teacher yields the size of its vocabulary.
        none = wanted.new_zeros(0, dtype=torch.long)
        no_positions = Positions(none, torch.zeros(1, dtype=torch.long, device=x_t.device), none)
        predictions.append(
            (none, process.masked_log_probs(state.logits(no_positions, t, s, one_time=False)(slice(None))))
        )
    wrong = state.log_probs.isnan()
    if bool(wrong.any()):
        sequence, position = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"sequence {sequence}, position {position}: the teacher's logits hold NaN or +inf, or no token is "
            "possible, so there is no token to draw"
        )
    index, log_probs_NV = (torch.cat(parts) for parts in zip(*predictions, strict=True))
    targets_NV = log_probs_NV[index.argsort()]
    return TeacherTargets(
        x_t, t, wanted, attention_mask, dict(model_kwargs or {}), x_s=state.tokens, s=s, log_probs_NV=targets_NV
    )
