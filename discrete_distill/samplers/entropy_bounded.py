"""Entropy-bounded sampling: as many tokens a step as a bound on their entropy allows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..checks import check_flag, check_number
from ..kernels import SampledRows
from .options import SamplerOptions
from .order import Order, certainty, check_order, rank_of
from .state import SamplerState
from .trajectory import Recorder, until_filled


@dataclass(frozen=True, kw_only=True)
class EntropyBoundedSampler(SamplerOptions):
    r"""EB-Sampler (arXiv 2505.24857).

    A step draws a token for every mask, orders them by certainty and keeps the longest prefix ``U`` with

    .. math:: \sum_{l \in U} H_l - \max_{l \in U} H_l \le \gamma,

    ``H`` the entropies at the positions: an upper bound on the mutual information that independent draws lose, in nats.
    One token is always kept. Sequences finish after different numbers of steps; at ``gamma = 0``, where entropies are
    above 0, that is one token a step. There is no grid: the denoiser is passed the time at which so many masks are
    expected.

    Args:
        gamma: bound in nats.
        order: "entropy", "confidence" or "margin".
        greedy: the most likely token in place of a draw.

    The other options are those of `SamplerOptions`. The number of steps depends on the logits, so every step waits for
    the device once.

    Raises:
        ValueError: if ``gamma`` is negative or the order unknown.

    Examples:
        >>> samplers = [EntropyBoundedSampler(process, gamma=gamma) for gamma in (0.0, 2.1, 4.2)]
        >>> [sampler(teacher, (1, 12), generator=generator).nfe for sampler in samplers]  # log(8) = 2.08 nats a token
        [12, 6, 4]
    """

    gamma: float = 0.1
    order: Order = "entropy"
    greedy: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.order)
        check_flag("greedy", self.greedy)
        check_number("gamma", self.gamma, minimum=0.0)

    def fill(self, state: SamplerState, recorder: Recorder) -> None:
        until_filled(state, recorder, partial(self._step, state))

    def _step(self, state: SamplerState, step: int, t: Tensor, s: Tensor) -> None:
        masked = state.masked()
        positions = state.select(masked)
        scores = certainty(self.order, state.token_distribution)

        def score_and_entropy(logits_nV: Tensor, drawn: SampledRows, part: slice) -> Tensor:
            assert drawn.entropy is not None
            return torch.stack((scores(logits_nV, drawn, part), drawn.entropy), dim=1)

        drawn = state.draw(
            positions,
            t,
            s,
            step,
            statistic=score_and_entropy,
            greedy=self.greedy,
            return_entropy=True,
            one_time=step == 0,
        )
        assert drawn.statistic is not None
        score_BL, entropy_BL = (state.scatter(positions, each, 0.0) for each in drawn.statistic.unbind(1))
        score_BL = torch.where(masked, torch.nan_to_num(score_BL, nan=-1e30, neginf=-1e30), float("-inf"))
        state.write_where(kept_under(self.gamma, score_BL, entropy_BL, masked), positions, drawn)


def kept_under(gamma: float, score_BL: Tensor, entropy_BL: Tensor, masked_BL: Tensor) -> Tensor:
    """Bool ``[B, L]``: the longest prefix, in the order of the scores, whose entropy but for the maximum is within
    ``gamma``; of masked positions only, which score above the others."""
    rank_BL = rank_of(score_BL)
    by_rank_BL = torch.zeros_like(entropy_BL, dtype=torch.float64).scatter(1, rank_BL, entropy_BL.double())
    cost_BL = by_rank_BL.cumsum(1) - by_rank_BL.cummax(1).values
    first = torch.arange(cost_BL.shape[1], device=cost_BL.device) == 0
    return ((cost_BL <= gamma) | first).gather(1, rank_BL) & masked_BL
