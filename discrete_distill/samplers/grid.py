"""Samplers that walk through a grid of times: the walk, the coins of all its steps, and what is left at its end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .options import GridOptions, Sampler
from .output import SamplerOutput
from .rows import Rows, planned_rows
from .run import Run
from .trajectory import Recorder, ReverseStep, StepCallback, walk

COINS_PER_CALL = 2**16


class GridSampler(GridOptions, Sampler):
    """A sampler on a grid that needs a denoiser and nothing else."""


def walk_grid(
    options: GridOptions,
    run: Run,
    reverse_step: ReverseStep,
    *,
    return_history: bool,
    callback: StepCallback | None,
    left: Rows | None = None,
) -> SamplerOutput:
    """Take all steps of the grid and remove the noise that it leaves.

    Args:
        options: of the sampler.
        run: of this call.
        reverse_step: ``reverse_step(step, t, s)``, times ``[B]``.
        return_history: keep every state.
        callback: called after each step, that of noise removal included.
        left: rows that the grid leaves masked, where the sampler knows them; looked up if None.
    """
    times, canvas = options.times, run.canvas
    removes = times[-1] > 0.0 and options.noise_removal != "none"
    recorder = Recorder(
        run,
        return_history=return_history,
        callback=callback,
        total=len(times) - 1 + removes,
        progress=options.progress,
    )
    ends = torch.tensor([*times, 0.0], device=canvas.z.device)[:, None].expand(-1, canvas.batch)
    walk(recorder, pairwise(ends[:-1]), reverse_step)
    if removes:
        left = run.select(canvas.masked()) if left is None else left
        run.reveal(left, ends[-2], ends[-1], recorder.steps, greedy=options.noise_removal == "greedy")
        recorder.after_step()
    recorder.close()
    return run.finish(recorder.history)


def coin_flags(run: Run, times: Sequence[float]) -> tuple[list[Tensor], Tensor]:
    """Bool ``[B, L]`` for each step: what its coins reveal; and what no step reveals."""
    canvas, process = run.canvas, run.canvas.process
    ends = torch.tensor(times, device=canvas.z.device)
    masked, flags = canvas.masked(), []
    # Counters are many small operations, so that the coins of several steps are tossed in one call.
    together = max(1, COINS_PER_CALL // max(1, canvas.z.numel()))
    for start in range(0, len(times) - 1, together):
        t, s = ends[:-1][start : start + together], ends[1:][start : start + together]
        heads = canvas.coins_of_steps(start, process.unmask_probability(t, s))
        for coins in heads:
            flags.append(coins & masked)
            masked = masked & ~coins
    return flags, masked


def coin_rows(run: Run, times: Sequence[float]) -> list[Rows]:
    """The rows that each step reveals, and at last those that are left."""
    flags, left = coin_flags(run, times)
    return planned_rows([*flags, left])
