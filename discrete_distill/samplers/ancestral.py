"""Ancestral sampling of masked diffusion."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .grid import GridSampler, coin_rows, walk_grid
from .output import SamplerOutput
from .run import Run
from .trajectory import StepCallback


@dataclass(frozen=True)
class AncestralSampler(GridSampler):
    """The reverse process of MDLM (arXiv 2406.07524).

    In the step from ``t`` to ``s`` each masked token is revealed with probability
    ``(alpha_s - alpha_t) / (1 - alpha_t)`` and only then drawn from the denoiser. All coins are tossed before the first
    step; logits are computed for the revealed positions alone, in sequences that reveal any. A last step that ends at 0
    reveals all that is left, so there is no extra pass.

    Args:
        process: mask and schedule.
        num_steps: steps; one in which nothing is revealed anywhere costs no call.

    The other options are those of `GridOptions` and `SamplerOptions`.
    """

    def fill(self, run: Run, *, return_history: bool, callback: StepCallback | None) -> SamplerOutput:
        rows = coin_rows(run, self.times)

        def reverse_step(step: int, t: Tensor, s: Tensor) -> None:
            run.reveal(rows[step], t, s, step)

        return walk_grid(self, run, reverse_step, return_history=return_history, callback=callback, left=rows[-1])
