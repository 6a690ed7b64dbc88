"""Confidence sampling: in every step the tokens that the denoiser is surest of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import check_flag, check_number
from .counts import dealt_out, hidden_shares
from .grid import walk_grid
from .options import GridOptions
from .order import Order, certainty, check_order, order_noise, rank_of
from .state import SamplerState
from .trajectory import Recorder


@dataclass(frozen=True, kw_only=True)
class ConfidenceSampler(GridOptions):
    """Low-confidence remasking of LLaDA (arXiv 2502.09992), MaskGIT (2202.04200) and Dream (2508.15487).

    A step draws a token for every mask, keeps the most certain ones and leaves the others masked. Of a sequence's
    ``n`` masks a step from ``t`` to ``s`` reveals the share ``(alpha_s - alpha_t) / (1 - alpha_1)``, in whole tokens
    that add up to ``n`` (largest remainders): with a linear or log-linear schedule and an even grid of ``K`` steps,
    ``n // K`` tokens a step and one more in the first ``n % K`` steps, as in LLaDA. How many are revealed is fixed;
    which are depends on the draws, so the distribution is not that of the denoiser even when steps are many (it leans
    towards likely tokens).

    Args:
        order: "confidence" (log-probability of the drawn token), "margin" (of the two most likely tokens) or "entropy".
        order_temperature: of Gumbel noise on those scores; 0 is none.
        greedy: the most likely token in place of a draw (LLaDA's temperature 0).

    The other options are those of `GridOptions` and `SamplerOptions`.

    Raises:
        ValueError: if the order is unknown, or its temperature negative.

    Examples:
        >>> sampler = ConfidenceSampler(process, num_steps=4, order="margin", greedy=True)
        >>> out = sampler(teacher, (1, 16), generator=generator, return_history=True)
        >>> [int((x_t == 8).sum()) for x_t in out.history]  # Masks left.
        [16, 12, 8, 4, 0]
    """

    order: Order = "confidence"
    order_temperature: float = 0.0
    greedy: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.order)
        check_flag("greedy", self.greedy)
        check_number("order_temperature", self.order_temperature, minimum=0.0)

    def fill(self, state: SamplerState, recorder: Recorder) -> None:
        counts_KB = self._counts(state)
        capacities = counts_KB.sum(1).tolist()
        on_device = counts_KB.to(state.tokens.device)

        def reverse_step(step: int, t: Tensor, s: Tensor) -> None:
            if capacities[step] > capacities[step + 1]:
                self._step(state, step, t, s, on_device[step], on_device[step + 1], capacities[step])

        walk_grid(self, state, reverse_step, recorder)

    def _counts(self, state: SamplerState) -> Tensor:
        """Masks of each sequence before each step and at the end, int64 ``[K + 1, B]``, on the host."""
        masks = state.masked().sum(1).tolist()
        shares = hidden_shares(self.process, self.times)
        left_of = {count: dealt_out(shares, count) for count in set(masks)}
        return torch.tensor([left_of[count] for count in masks]).T

    def _step(
        self, state: SamplerState, step: int, t: Tensor, s: Tensor, before_B: Tensor, after_B: Tensor, capacity: int
    ) -> None:
        moving_B1 = (after_B < before_B)[:, None]
        positions = state.select(state.masked() & (moving_B1 | state.static), capacity)
        options: dict[str, Any] = {"greedy": self.greedy, "return_entropy": self.order == "entropy"}
        drawn = state.draw(positions, t, s, step, statistic=certainty(self.order, state.token_distribution), **options)
        assert drawn.statistic is not None
        scores_BL = state.scatter(positions, drawn.statistic, float("-inf"))
        noise_BL = order_noise(state, step, self.order_temperature)
        if noise_BL is not None:
            scores_BL = scores_BL + noise_BL
        # Positions with bad logits score -inf, as do those without logits, but come before them.
        scores_BL = torch.where(state.masked(), torch.nan_to_num(scores_BL, nan=-1e30, neginf=-1e30), float("-inf"))
        chosen_BL = (rank_of(scores_BL) < (before_B - after_B)[:, None]) & state.masked()
        state.write_where(chosen_BL, positions, drawn)
