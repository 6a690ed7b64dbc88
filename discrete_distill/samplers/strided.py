r"""The strided order: positions that are revealed together lie ``K`` apart.

A step draws its tokens independently of one another, given what is there. What that costs is their dependence, and in
text tokens depend on their neighbours. In the reverse process each mask is revealed at a time of its own, so that
neighbours often meet in one step. Here the ``r``-th of the masks of a sequence is revealed once the share of masks that
are gone passes

.. math:: u_r = \operatorname{frac}(v + r / K), \qquad v \sim U(0, 1) \text{ for each sequence}.

Each ``u_r`` is uniform, so each position is revealed at a time of the same law as in the reverse process, and each step
reveals as many of them on average; only together they are no longer independent (systematic sampling). On an even grid
of ``K`` steps a step reveals every ``K``-th mask, and the next step those to the right of them: ``L / K`` streams are
written from left to right, side by side. That positions which are far apart should share a step is the idea of dilated
unmasking (DUS, arXiv 2506.19037), which halves the distances from step to step; this order is our own.

Shape suffixes: B batch, L length, K steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import STREAM_UNMASK, uniform
from ..process import UnmaskingOrder
from .state import SamplerState


@dataclass(frozen=True)
class Stride:
    """When the masks of a trajectory are revealed in the strided order.

    Args:
        num_steps: steps of the whole trajectory, ``K``.
        start: time of its start, at which its masks are there.

    Examples:
        >>> state = SamplerState(process, teacher, (8, 16), generator=generator)
        >>> first, second = Stride(2, 1.0).reveals(state, torch.tensor([1.0, 0.5, 0.0]))
        >>> first.sum(1).tolist(), bool((first ^ second).all())  # Every other position, and then those between.
        ([8, 8, 8, 8, 8, 8, 8, 8], True)
    """

    num_steps: int
    start: float

    def quantiles(self, state: SamplerState) -> Tensor:
        """``u_r`` of each generated position, fp32 ``[B, L]`` in ``[0, 1)``."""
        first_B1 = state.draw_numbers.view(state.tokens.shape)[:, :1]
        v_B1 = uniform(state.seed, row=first_B1, stream=STREAM_UNMASK, dtype=torch.float32)
        rank_BL = state.generation_mask.long().cumsum(1) - 1
        return (v_B1 + (rank_BL % self.num_steps) / self.num_steps).frac()

    def reveals(self, state: SamplerState, ends: Tensor) -> list[Tensor]:
        """Bool ``[B, L]`` for each step: masks of the state that it reveals.

        Args:
            state: before the first of the steps.
            ends: times of the steps, ``[K + 1]`` or ``[K + 1, B]``: all of the trajectory, or those of a part of it.
        """
        quantiles_BL, masked, flags = self.quantiles(state), state.masked(), []
        share_K = state.process.unmask_probability(torch.full_like(ends[1:], self.start), ends[1:])
        for share in share_K:
            flags.append(masked & (quantiles_BL < share.view(-1, 1)))
            masked = masked & ~flags[-1]
        return flags


def stride_of(order: UnmaskingOrder, times: Sequence[float]) -> Stride | None:
    """The stride of a trajectory between given times; None of one in random order."""
    return Stride(len(times) - 1, times[0]) if order == "strided" else None
