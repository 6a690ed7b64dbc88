"""First-hitting sampling: the continuous-time reverse process, one token a call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import STREAM_TIME, uniform
from .options import SamplerOptions
from .positions import Positions, moved_positions
from .state import SamplerState
from .trajectory import Recorder, walk


@dataclass(frozen=True, kw_only=True)
class FirstHittingSampler(SamplerOptions):
    """The first-hitting sampler (arXiv 2409.02908): the limit of ancestral sampling in infinitely many steps, exactly.

    Each masked position is revealed at its own time ``tau`` with ``P(tau <= t) = 1 - alpha_t``, whatever the denoiser
    predicts; between these times nothing happens. So all times are drawn first, and the denoiser is called at each of
    them: once for every token of the longest sequence. The k-th tokens of all sequences share a call.

    For a denoiser that ignores time this is autoregression in a uniformly random order.

    The options are those of `SamplerOptions`; there is no grid and no number of steps.

    Examples:
        >>> out = FirstHittingSampler(process)(teacher, x_init=torch.tensor([[1, 8, 8, 8]]), generator=generator)
        >>> out.nfe, out.sequences[0, 0].item()
        (3, 1)
    """

    def fill(self, state: SamplerState, recorder: Recorder) -> None:
        draw_BL = uniform(state.seed, row=state.position_numbers, stream=STREAM_TIME).view_as(state.tokens)
        # Times at the ends of the schedule, or equal in fp32, keep the random order of what they were made of.
        order_BL = draw_BL.masked_fill(~state.generation_mask, -1.0).argsort(dim=1, descending=True, stable=True)
        times_BL = self._event_times(state, draw_BL).gather(1, order_BL)
        counts_B = state.generation_mask.sum(1).cpu()
        steps = int(counts_B.max()) if len(counts_B) else 0
        positions = moved_positions(event_positions(order_BL.cpu(), counts_B, steps), state.tokens.device)
        # The step of a token ends where the next one is revealed; finished sequences stand at 0.
        times_BL = torch.cat((times_BL.clamp(min=0.0), torch.zeros_like(times_BL[:, :1])), dim=1)

        def reverse_step(step: int, t: Tensor, s: Tensor) -> None:
            state.reveal(positions[step], t, s, step, one_time=False)

        recorder.expect(steps)
        walk(recorder, ((times_BL[:, k], times_BL[:, k + 1]) for k in range(steps)), reverse_step)

    def _event_times(self, state: SamplerState, draw_BL: Tensor) -> Tensor:
        """When each position is revealed, fp32 ``[B, L]``, in ``[0, 1]``; -1 where nothing is."""
        times = self.process.schedule.inverse(1.0 - draw_BL).clamp(0.0, 1.0)
        return times.float().masked_fill(~state.generation_mask, -1.0)


def event_positions(order_BL: Tensor, counts_B: Tensor, steps: int) -> list[Positions]:
    """The k-th position in the order of each sequence that has so many, for every ``k``."""
    batch, length = order_BL.shape
    made = []
    for k in range(steps):
        sequences = (counts_B > k).nonzero().squeeze(1)
        position = order_BL[sequences, k]
        index = sequences * length + position
        if len(sequences) == batch:
            made.append(Positions(index, None, index))
        else:
            made.append(Positions(index, sequences, torch.arange(len(sequences)) * length + position))
    return made
