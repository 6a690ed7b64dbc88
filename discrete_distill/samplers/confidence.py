"""Confidence sampling: in every step the tokens that the denoiser is surest of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..checks import check_flag, check_number
from .counts import dealt_out, hidden_shares
from .grid import walk_grid
from .options import GridOptions
from .order import Order, certainty, check_order, order_noise, rank_of
from .positions import Positions
from .state import Drawn, SamplerState
from .trajectory import Recorder, until_filled


@dataclass(frozen=True, kw_only=True)
class ConfidenceSampler(GridOptions):
    """Low-confidence remasking of LLaDA (arXiv 2502.09992), MaskGIT (2202.04200) and Dream (2508.15487), or parallel
    decoding by confidence of Fast-dLLM (2505.22618).

    A step draws a token for every mask, keeps the most certain ones and leaves the others masked. Of a sequence's
    ``n`` masks a step from ``t`` to ``s`` reveals the share ``(alpha_s - alpha_t) / (1 - alpha_1)``, in whole tokens
    that add up to ``n`` (largest remainders): with a linear or log-linear schedule and an even grid of ``K`` steps,
    ``n // K`` tokens a step and one more in the first ``n % K`` steps, as in LLaDA. How many are revealed is fixed;
    which are depends on the draws, so the distribution is not that of the denoiser even when steps are many (it leans
    towards likely tokens).

    With ``threshold`` or ``factor`` there is no grid: a step reveals as many tokens as are certain, one at least, until
    no mask is left, and waits for the device once.

    Args:
        order: "confidence" (log-probability of the drawn token), "margin" (of the two most likely tokens) or "entropy".
        order_temperature: of Gumbel noise on those scores; 0 is none.
        greedy: the most likely token in place of a draw (LLaDA's temperature 0).
        threshold: reveal every token whose probability is at least this, in ``(0, 1]``.
        factor: reveal the longest prefix, by confidence, whose ``n``-th token has a probability of at least
            ``1 - factor / (n + 1)``; above 0.

    The other options are those of `GridOptions` and `SamplerOptions`.

    Raises:
        ValueError: if the order is unknown, a number is out of range, threshold and factor are both given, or one of
            them together with options of a grid or with an order that is no probability.

    Examples:
        >>> sampler = ConfidenceSampler(process, num_steps=4, order="margin", greedy=True)
        >>> out = sampler(teacher, (1, 16), generator=generator, return_history=True)
        >>> [int((x_t == 8).sum()) for x_t in out.history]  # Masks left.
        [16, 12, 8, 4, 0]
    """

    order: Order = "confidence"
    order_temperature: float = 0.0
    greedy: bool = False
    threshold: float | None = None
    factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.order)
        check_flag("greedy", self.greedy)
        check_number("order_temperature", self.order_temperature, minimum=0.0)
        if self.threshold is not None:
            check_number("threshold", self.threshold, exclusive_minimum=0.0, maximum=1.0)
        if self.factor is not None:
            check_number("factor", self.factor, exclusive_minimum=0.0)
        if self._adaptive:
            self._check_adaptive()

    @property
    def _adaptive(self) -> bool:
        return self.threshold is not None or self.factor is not None

    def _check_adaptive(self) -> None:
        if self.threshold is not None and self.factor is not None:
            raise ValueError(f"threshold = {self.threshold} and factor = {self.factor} are two rules; give one of them")
        for name in ("num_steps", "grid", "end", "noise_removal", "order", "order_temperature"):
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if not (isinstance(value, type(default)) and value == default):
                rule = "threshold" if self.factor is None else "factor"
                raise ValueError(
                    f"{name} = {value!r} has no effect with {rule}, which decides by probability: leave it out"
                )

    def fill(self, state: SamplerState, recorder: Recorder) -> None:
        if self._adaptive:
            until_filled(state, recorder, partial(self._adaptive_step, state))
            return
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
        drawn, scores_BL = self._drawn(state, positions, t, s, step)
        noise_BL = order_noise(state, step, self.order_temperature)
        if noise_BL is not None:
            scores_BL = scores_BL + noise_BL
        chosen_BL = (rank_of(scores_BL) < (before_B - after_B)[:, None]) & state.masked()
        state.write_where(chosen_BL, positions, drawn)

    def _adaptive_step(self, state: SamplerState, step: int, t: Tensor, s: Tensor) -> None:
        masked_BL = state.masked()
        positions = state.select(masked_BL)
        drawn, scores_BL = self._drawn(state, positions, t, s, step, one_time=step == 0)
        rank_BL = rank_of(scores_BL)
        if self.threshold is not None:
            certain_BL = scores_BL >= math.log(self.threshold)
        else:
            certain_BL = self._certain_by_factor(scores_BL, rank_BL)
        state.write_where(masked_BL & (certain_BL | (rank_BL == 0)), positions, drawn)

    def _certain_by_factor(self, scores_BL: Tensor, rank_BL: Tensor) -> Tensor:
        """Bool ``[B, L]``: positions of the longest prefix that meets the bound at every rank."""
        assert self.factor is not None
        number_L = torch.arange(1, scores_BL.shape[1] + 1, device=scores_BL.device)
        by_rank_BL = torch.zeros_like(scores_BL).scatter(1, rank_BL, scores_BL).exp()
        meets_BL = by_rank_BL >= 1.0 - self.factor / (number_L + 1)
        return meets_BL.long().cumprod(1).bool().gather(1, rank_BL)

    def _drawn(
        self, state: SamplerState, positions: Positions, t: Tensor, s: Tensor, step: int, *, one_time: bool = True
    ) -> tuple[Drawn, Tensor]:
        """Tokens for the positions, and their scores ``[B, L]``, -inf where no token was drawn."""
        options: dict[str, Any] = {"greedy": self.greedy, "return_entropy": self.order == "entropy"}
        statistic = certainty(self.order, state.token_distribution)
        drawn = state.draw(positions, t, s, step, statistic=statistic, one_time=one_time, **options)
        assert drawn.statistic is not None
        scores_BL = state.scatter(positions, drawn.statistic, float("-inf"))
        # Positions with bad logits score -inf, as do those without logits, but come before them.
        scores_BL = torch.nan_to_num(scores_BL, nan=-1e30, neginf=-1e30)
        return drawn, torch.where(state.masked(), scores_BL, float("-inf"))
