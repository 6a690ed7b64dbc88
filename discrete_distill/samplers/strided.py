r"""The strided order: positions that are revealed together lie ``K`` apart.

A step draws its tokens independently of one another, given what is there. What that costs is their dependence, and in
text tokens depend on their neighbours. In the reverse process each mask is revealed at a time of its own, so that
neighbours often meet in one step. Here the ``r``-th of the masks of a sequence is revealed once the share of masks that
are gone passes

.. math:: u_r = \operatorname{frac}(v + r / K), \qquad v \sim U(0, 1) \text{ for each sequence}.

Each ``u_r`` is uniform, so each position is revealed at a time of the same distribution as in the reverse process, and
each step reveals as many of them on average; only together they are no longer independent (systematic sampling). On an
even grid of ``K`` steps a step reveals every ``K``-th mask, and the next step those to the right of them: ``L / K``
streams are written from left to right, side by side. That positions which are far apart should share a step is the idea
of dilated unmasking (DUS, arXiv 2506.19037), which halves the distances from step to step; this order is our own.

Shape suffixes: B batch, L length, K steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import STREAM_UNMASK, uniform
from ..process import MaskedDiffusion, UnmaskingOrder
from .state import SamplerState

WHOLE = 1e-4
"""Shares are times in fp32, and ``K`` of them that are nearly a whole number are taken for one."""


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

    def places(self, state: SamplerState) -> Tensor:
        """``K u_r`` of each generated position, fp64 ``[B, L]`` in ``[0, K)``."""
        first_B1 = state.draw_numbers.view(state.tokens.shape)[:, :1]
        v_B1 = uniform(state.seed, row=first_B1, stream=STREAM_UNMASK, dtype=torch.float32)
        start_B1 = self.num_steps * v_B1.double()
        rank_BL = state.generation_mask.long().cumsum(1) - 1
        # The whole part moves round and the rest stays, so that classes of positions meet no end of a step by rounding.
        return (rank_BL + start_B1.long()) % self.num_steps + start_B1.frac()

    def revealed(self, process: MaskedDiffusion, s: Tensor) -> Tensor:
        """``K`` times the share of masks that are gone at times ``s``, ``1 - (1 - alpha_s) / (1 - alpha_start)``, fp64;
        whole numbers on an even grid of a linear schedule."""
        s = s.double()
        hidden_s, at_start = (1.0 - process.schedule.alpha(each) for each in (s, torch.full_like(s, self.start)))
        hidden = torch.where(s <= 0.0, 0.0, hidden_s / at_start)
        gone = self.num_steps * (1.0 - hidden)
        return torch.where((gone - gone.round()).abs() < WHOLE, gone.round(), gone)

    def reveals(self, state: SamplerState, ends: Tensor) -> list[Tensor]:
        """Bool ``[B, L]`` for each step: masks of the state that it reveals.

        Args:
            state: before the first of the steps.
            ends: times of the steps, ``[K + 1]`` or ``[K + 1, B]``: all of the trajectory, or those of a part of it.
        """
        places_BL, masked, flags = self.places(state), state.masked(), []
        for gone in self.revealed(state.process, ends[1:]):
            flags.append(masked & (places_BL < gone.view(-1, 1)))
            masked = masked & ~flags[-1]
        return flags


def stride_of(order: UnmaskingOrder, times: Sequence[float]) -> Stride | None:
    """The stride of a trajectory between given times; None of one in random order."""
    return Stride(len(times) - 1, times[0]) if order == "strided" else None
