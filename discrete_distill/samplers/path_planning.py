"""Path planning (P2): every step decides anew which tokens deserve to be visible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_flag, check_number
from ..kernels import SampledRows
from ..process.conditions import call_network, check_keywords
from .counts import hidden_shares, masks_left
from .grid import walk_grid
from .options import GridOptions
from .order import rank_of
from .positions import Positions, planned_positions
from .state import Drawn, SamplerState
from .trajectory import Recorder

Planner = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class PathPlanningSampler(GridOptions):
    """P2 sampling (arXiv 2502.03540).

    A step draws a token for every mask, scores all positions, and masks those of the ``n`` generated ones of a sequence
    that score lowest, written ones among them: ``floor(n (1 - alpha_s) / (1 - alpha_1))`` of them. Where it was masked
    and is not among the lowest, the draw is kept. The score of a drawn token is its log-probability; that of a written
    one is ``eta`` times the log-probability that the denoiser's own logits give it now (self-planning), or the
    planner's.

    Args:
        eta: how easily written tokens are masked again: 0 never, 1 like any other, more sooner.
        planner: ``planner(x_0, t) -> [B, L]``: log-probability of each token of the clean sequences ``x_0``, for the
            written tokens; passed the attention mask and the conditions where there are any, and counted among the
            network evaluations. Self-planning if None.
        greedy: the most likely token in place of a draw.

    The other options are those of `GridOptions` and `SamplerOptions`; each step is one call. Logits of visible tokens
    are read: a denoiser whose logits mean nothing there needs a planner, or ``eta=0``.

    Raises:
        TypeError: if an option has a wrong type.
        ValueError: if ``eta`` is negative, or 0 with a planner that would not be called.

    Examples:
        >>> def planner(x_0, t):
        ...     return -5.0 * (x_0 == 3)  # Distrust token 3.
        >>> sampler = PathPlanningSampler(process, num_steps=4, planner=planner)
        >>> out = sampler(teacher, (2, 16), generator=generator)
        >>> out.nfe, out.network_evaluations
        (4, 8)
    """

    eta: float = 1.0
    planner: Planner | None = None
    greedy: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("greedy", self.greedy)
        check_number("eta", self.eta, minimum=0.0)
        if self.planner is not None and not callable(self.planner):
            raise TypeError(f"planner is a function of (x_0, t), got {type(self.planner).__name__}")
        if self.planner is not None and self.eta == 0.0:
            raise ValueError("eta=0 never masks a written token again, so it calls no planner; leave the planner out")

    @property
    def reads_whole_sequences(self) -> bool:
        """Whether a planner reads them."""
        return self.planner is not None

    def fill(self, state: SamplerState, recorder: Recorder) -> None:
        if self.planner is not None:
            check_keywords(self.planner, self.planner, state.conditions())
        # All generated positions in every step: which they are is known before the first.
        (positions,) = planned_positions([state.generation_mask])
        left_KB = self._masks_left(state)

        def reverse_step(step: int, t: Tensor, s: Tensor) -> None:
            if not positions:
                return
            tokens_N = state.tokens.flatten()[positions.index]

            def log_prob_of_current(logits_nV: Tensor, _drawn: SampledRows, part: slice) -> Tensor:
                log_probs_nV = state.token_distribution.probabilities(logits_nV).log()
                return log_probs_nV.gather(1, tokens_N[part, None])[:, 0].float()

            drawn = state.draw(positions, t, s, step, greedy=self.greedy, statistic=log_prob_of_current)
            assert drawn.statistic is not None
            masked = state.masked()
            fresh_BL = state.scatter(positions, drawn.log_probs[:, 0], 0.0)
            score_BL = torch.where(masked, fresh_BL, self._score_written(state, positions, drawn, s, step))
            kept_B = left_KB[0] - left_KB[step + 1]
            score_BL = torch.nan_to_num(score_BL, nan=-1e30, neginf=-1e30).masked_fill(
                ~state.generation_mask, float("-inf")
            )
            kept_BL = rank_of(score_BL) < kept_B[:, None]
            state.write_where(kept_BL & masked, positions, drawn)
            state.mask_again(state.generation_mask & ~masked & ~kept_BL)

        walk_grid(self, state, reverse_step, recorder)

    def _masks_left(self, state: SamplerState) -> Tensor:
        """Masks of each sequence before each step and at the end, int64 ``[K + 1, B]``."""
        sizes = state.generation_mask.sum(1).tolist()
        shares = hidden_shares(self.process, self.times)
        left_of = {size: masks_left(shares, size) for size in set(sizes)}
        return torch.tensor([left_of[size] for size in sizes], device=state.tokens.device).T

    def _score_written(self, state: SamplerState, positions: Positions, drawn: Drawn, s: Tensor, step: int) -> Tensor:
        """``eta`` times the log-probability of what stands at each position, ``[B, L]``; read at written ones only."""
        assert drawn.statistic is not None
        if self.eta == 0.0:
            return torch.full_like(state.log_probs, float("inf"))
        if self.planner is None:
            return self.eta * state.scatter(positions, drawn.statistic, 0.0)
        state.other_calls += 1
        filled = torch.where(state.masked(), state.scatter(positions, drawn.tokens[:, 0], 0), state.tokens)
        scores_BL = call_network(self.planner, self.planner, filled, s, model_kwargs=state.conditions())
        if not isinstance(scores_BL, Tensor) or scores_BL.shape != filled.shape:
            got = list(scores_BL.shape) if isinstance(scores_BL, Tensor) else type(scores_BL).__name__
            raise ValueError(f"a planner returns log-probabilities {list(filled.shape)}, got {got}")
        written = state.generation_mask & ~state.masked()
        state.note_scores(((scores_BL.isnan() | scores_BL.isposinf()) & written).any(1), step)
        return self.eta * scores_BL.float()
