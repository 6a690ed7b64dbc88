"""The walk that step-by-step samplers share: an even grid from 1 to 0, costs, history, callback."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..canvas import Canvas, time_grid
from .output import SamplerOutput

StepCallback = Callable[[int, Tensor], None]
ReverseStep = Callable[[int, Tensor, Tensor], tuple[int, int]]


def walk(
    canvas: Canvas,
    num_steps: int,
    reverse_step: ReverseStep,
    *,
    return_history: bool = False,
    callback: StepCallback | None = None,
) -> SamplerOutput:
    """Take every step on ``canvas`` in place.

    Args:
        canvas: sequences under construction.
        num_steps: steps on the grid.
        reverse_step: ``reverse_step(step, t, s) -> (denoiser calls, calls of other networks)``, times ``[B]``.
        return_history: keep every state.
        callback: called with the step's number and the state ``[B, L]`` after each step.
    """
    times = time_grid(num_steps, device=canvas.z.device)
    history = [canvas.z] if return_history else None
    nfe = other_calls = 0
    for step in range(num_steps):
        t, s = (times[step + i].expand(canvas.batch) for i in (0, 1))
        calls, others = reverse_step(step, t, s)
        nfe, other_calls = nfe + calls, other_calls + others
        if history is not None:
            history.append(canvas.z)
        if callback is not None:
            callback(step, canvas.z)
    return SamplerOutput(canvas.z, nfe, nfe + other_calls, canvas.log_probs, history)
