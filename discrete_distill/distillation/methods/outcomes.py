"""Decoding in the order of confidence, with one uniform number for each position whatever the step.

Shape suffixes: B batch, L length, V vocabulary, n positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels import SampledRows
from ...process import Denoiser, MaskedDiffusion
from ...samplers.filtering import TokenDistribution
from ...samplers.order import rank_of
from ...samplers.state import SamplerState


@dataclass(frozen=True, kw_only=True)
class OutcomeDecoder:
    """Decode masked states with tokens that are a function of the denoiser's answers alone.

    Two denoisers, or one that decodes from two states, draw the same token at a position where their distributions are
    the same. The order does not depend on the draws, so that one token a step makes outcomes exact samples of a
    denoiser whose answers are the conditionals of a joint distribution.

    Args:
        process: mask and schedule.
        num_steps: in which all masks are revealed, the most confident positions first.
        temperature: of the tokens; 0 takes the most likely ones.
        seed: of the uniform numbers, int64 scalar.
        size: generated positions of each sequence, int64 ``[B]``, of which the masks of a state are a part.
        generation_mask: bool ``[B, L]``, true at masks that may be revealed.
        attention_mask: bool ``[B, L]``, true at real tokens, or None.
        model_kwargs: passed to denoisers by keyword.
    """

    process: MaskedDiffusion
    num_steps: int
    temperature: float
    seed: Tensor
    size: Tensor
    generation_mask: Tensor
    attention_mask: Tensor | None = None
    model_kwargs: Mapping[str, Any] | None = None

    def proposal(self, denoiser: Denoiser, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """Fill all masks from one answer.

        Args:
            denoiser: any `Denoiser`.
            x_t: int64 ``[B, L]``.

        Returns:
            The sequences, int64 ``[B, L]``, and at the masks ``log max_v p_i(v)``, fp32 ``[B, L]``; -inf elsewhere.
        """
        state = self._state(denoiser, x_t)
        confidence = self._step(state, state.masked().sum(1))
        return self._finished(state), confidence

    def outcome(self, denoiser: Denoiser, x_t: Tensor) -> Tensor:
        """Decode to the end.

        Args:
            denoiser: any `Denoiser`.
            x_t: int64 ``[B, L]``.

        Returns:
            int64 ``[B, L]``.

        Raises:
            ValueError: if the denoiser's logits leave nothing to draw from.
        """
        state = self._state(denoiser, x_t)
        for steps_left in range(self.num_steps, 0, -1):
            left = state.masked().sum(1)
            if not bool(left.any()):
                break
            self._step(state, (left + steps_left - 1).div(steps_left, rounding_mode="floor"))
        return self._finished(state)

    def _state(self, denoiser: Denoiser, x_t: Tensor) -> SamplerState:
        distribution = TokenDistribution(self.process.mask_token_id, self.temperature or 1.0)
        state = SamplerState(
            self.process,
            denoiser,
            x_init=x_t,
            attention_mask=self.attention_mask,
            generation_mask=self.generation_mask,
            model_kwargs=self.model_kwargs,
            token_distribution=distribution,
        )
        state.seed = self.seed
        return state

    def _step(self, state: SamplerState, count_B: Tensor) -> Tensor:
        """Reveal the most confident masks of each sequence; return the confidence ``[B, L]``."""
        masked = state.masked()
        positions = state.select(masked)
        confidence_BL = torch.full(masked.shape, float("-inf"), device=masked.device)
        if not positions:
            return confidence_BL
        t, s = (self.process.time_of_count(count, self.size) for count in (masked.sum(1), masked.sum(1) - count_B))

        def confidence(logits_nV: Tensor, drawn: SampledRows, part: slice) -> Tensor:
            return self.process.masked_log_probs(logits_nV).amax(-1)

        greedy = self.temperature == 0.0
        drawn = state.draw(positions, t, s, 0, statistic=confidence, greedy=greedy, one_time=False)
        assert drawn.statistic is not None
        confidence_BL = state.scatter(positions, drawn.statistic.float(), float("-inf"))
        state.write_where((rank_of(confidence_BL) < count_B[:, None]) & masked, positions, drawn)
        return confidence_BL

    def _finished(self, state: SamplerState) -> Tensor:
        return state.finish(None).sequences
