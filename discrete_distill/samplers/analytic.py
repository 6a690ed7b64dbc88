"""Analytic sampling: Tweedie tau-leaping of SEDD, for the absorbing process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..checks import check_choice
from ..kernels import STREAM_UNMASK, SampledRows
from .grid import drawn_positions, walk_grid
from .options import GridOptions
from .state import SamplerState
from .trajectory import Recorder


@dataclass(frozen=True, kw_only=True)
class AnalyticSampler(GridOptions):
    r"""Tweedie tau-leaping of SEDD (arXiv 2310.16834), all positions of a step at once.

    With concrete scores ``s_v = p_t(x_t with v at i) / p_t(x_t)`` of a masked position ``i`` and ``sigma = -log
    alpha``,

    .. math:: P(z_s^i = v) = (e^{\sigma_t - \sigma_s} - 1)\, s_v, \qquad
        P(z_s^i = m) = 1 - (e^{\sigma_t - \sigma_s} - 1) \sum_v s_v.

    A normalised denoiser has ``s_v = p(v) alpha_t / (1 - alpha_t)``, and the step is the ancestral one, token for
    token. A score network (``outputs="log_scores"``) is not normalised: the sum of its scores decides how likely a
    position is to be revealed. The unmasking draw is separate from the token here too. A step that ends at
    0 reveals all that is left, in proportion to the scores.

    Args:
        outputs: what the denoiser returns: "logits" of clean tokens, or "log_scores", ``log s_v``, which belong to the
            schedule that they were trained with.

    The other options are those of `GridOptions` and `SamplerOptions`.

    Raises:
        ValueError: if ``outputs`` is unknown, or scores are to be guided or belong to no finite noise.

    Examples:
        >>> seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
        >>> out = AnalyticSampler(process, num_steps=4)(teacher, (2, 16), generator=seeds[0])
        >>> ancestral = AncestralSampler(process, num_steps=4)(teacher, (2, 16), generator=seeds[1])
        >>> torch.equal(out.sequences, ancestral.sequences)
        True
    """

    outputs: Literal["logits", "log_scores"] = "logits"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("outputs", self.outputs, ("logits", "log_scores"))
        if self.outputs == "log_scores" and self.cfg_scale != 1.0:
            raise ValueError(
                f"cfg_scale = {self.cfg_scale} mixes logits of normalised denoisers; leave it at 1 with log-scores"
            )
        if self.outputs == "log_scores" and not bool(self.process.schedule.sigma(torch.ones(())).isfinite()):
            raise ValueError(
                f"scores are taken at finite noise, and {self.process.schedule} has alpha(1) = 0; use the schedule "
                "that the network was trained with, such as GeometricSchedule"
            )

    def fill(self, state: SamplerState, recorder: Recorder) -> None:
        if self.outputs == "logits":
            positions = drawn_positions(state, self.times)

            def ancestral_step(step: int, t: Tensor, s: Tensor) -> None:
                state.reveal(positions[step], t, s, step)

            walk_grid(self, state, ancestral_step, recorder, left=positions[-1])
        else:
            walk_grid(self, state, partial(self._score_step, state), recorder)

    def _score_step(self, state: SamplerState, step: int, t: Tensor, s: Tensor) -> None:
        mask = self.process.mask_token_id
        positions = state.select(state.masked())
        if not positions:
            return

        def total_score(log_scores_nV: Tensor, _drawn: SampledRows, _part: slice) -> Tensor:
            words = torch.arange(log_scores_nV.shape[1], device=log_scores_nV.device) != mask
            return log_scores_nV.float().masked_fill(~words, float("-inf")).logsumexp(1)

        drawn = state.draw(positions, t, s, step, statistic=total_score)
        assert drawn.statistic is not None
        log_total_BL = state.scatter(positions, drawn.statistic, float("-inf"))
        probability_BL = torch.expm1(self.process.schedule.sigma(t) - self.process.schedule.sigma(s))[:, None]
        probability_BL = (probability_BL * log_total_BL.exp()).clamp(max=1.0)
        probability_BL = torch.where((s <= 0.0)[:, None], torch.ones_like(probability_BL), probability_BL)
        revealed = (state.uniform(step, STREAM_UNMASK) < probability_BL) & state.masked()
        state.write_where(revealed, positions, drawn)
