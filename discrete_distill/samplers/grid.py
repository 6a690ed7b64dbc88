"""Samplers that walk through a grid of times: the walk, the unmasking draws of all its steps, and what is left at its
end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..process import UnmaskingOrder
from .options import GridOptions
from .positions import Positions, planned_positions
from .state import SamplerState
from .strided import Stride, stride_of
from .trajectory import Recorder, ReverseStep, walk

DRAWS_PER_CALL = 2**16


def walk_grid(
    options: GridOptions,
    state: SamplerState,
    reverse_step: ReverseStep,
    recorder: Recorder,
    *,
    left: Positions | None = None,
) -> None:
    """Take all steps of the grid and remove the noise that it leaves.

    Args:
        options: of the sampler.
        state: of this call.
        reverse_step: ``reverse_step(step, t, s)``, times ``[B]``.
        recorder: notes the state after each step, that of noise removal included.
        left: positions that the grid leaves masked, where the sampler knows them; looked up if None.
    """
    times = options.times
    removes = times[-1] > 0.0 and options.noise_removal != "none"
    recorder.expect(len(times) - 1 + removes)
    ends = torch.tensor([*times, 0.0], device=state.tokens.device)[:, None].expand(-1, state.batch)
    walk(recorder, pairwise(ends[:-1]), reverse_step)
    if removes:
        left = state.select(state.masked()) if left is None else left
        state.reveal(left, ends[-2], ends[-1], recorder.steps, greedy=options.noise_removal == "greedy")
        recorder.after_step()


def unmask_flags(
    state: SamplerState, ends: Tensor, *, first: int = 0, stride: Stride | None = None
) -> tuple[list[Tensor], Tensor]:
    """Bool ``[B, L]`` for each step: what its unmasking draws reveal; and what no step reveals.

    Args:
        state: before the first step.
        ends: times of the steps, ``[K + 1]`` or ``[K + 1, B]``.
        first: number of the first step.
        stride: of the strided order, in place of a draw for each position and step.
    """
    masked, flags = state.masked(), []
    if stride is not None:
        flags = stride.reveals(state, ends)
        return flags, masked & ~torch.stack(flags).any(0)
    # Counters are many small operations, so that the unmasking draws of several steps are drawn in one call.
    together = max(1, DRAWS_PER_CALL // max(1, state.tokens.numel()))
    for start in range(0, len(ends) - 1, together):
        t, s = ends[:-1][start : start + together], ends[1:][start : start + together]
        heads = state.unmask_draws_of_steps(first + start, state.process.unmask_probability(t, s))
        for unmask_draws in heads:
            flags.append(unmask_draws & masked)
            masked = masked & ~unmask_draws
    return flags, masked


def drawn_positions(state: SamplerState, times: Sequence[float], order: UnmaskingOrder = "random") -> list[Positions]:
    """The positions that each step reveals, and at last those that are left."""
    flags, left = unmask_flags(state, torch.tensor(times, device=state.tokens.device), stride=stride_of(order, times))
    return planned_positions([*flags, left])
