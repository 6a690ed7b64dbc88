"""What a call leaves behind step by step: history, callback, progress bar; and the walk through given times."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from .call import StepCallback
from .state import SamplerState

ReverseStep = Callable[[int, Tensor, Tensor], None]


def checked_callback(callback: StepCallback | None) -> StepCallback | None:
    """The callback, if it can be called."""
    if callback is not None and not callable(callback):
        raise TypeError(f"callback is a function of (step, state), got {type(callback).__name__}")
    return callback


class Recorder:
    """Notes the state after each step.

    Args:
        state: whose tokens.
        return_history: keep every state.
        callback: called with the step's number and the state ``[B, L]``.
        progress: show a progress bar.
    """

    def __init__(
        self,
        state: SamplerState,
        *,
        return_history: bool,
        callback: StepCallback | None,
        progress: bool = False,
    ) -> None:
        self.state, self.callback = state, checked_callback(callback)
        self.history = [state.tokens] if return_history else None
        self.steps = 0
        self.bar = None
        if progress:
            from tqdm import tqdm

            self.bar = tqdm(desc="sampling", unit="step")

    def expect(self, steps: int) -> None:
        """State the number of steps, for the progress bar."""
        if self.bar is not None:
            self.bar.reset(total=steps)

    def after_step(self) -> None:
        """Note the state as it is now."""
        tokens = self.state.tokens
        if self.history is not None:
            self.history.append(tokens)
        if self.callback is not None:
            self.callback(self.steps, tokens)
        self.steps += 1
        if self.bar is not None:
            self.bar.update()

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()


def until_filled(state: SamplerState, recorder: Recorder, adaptive_step: ReverseStep) -> None:
    """Take steps while a mask is left: ``adaptive_step(step, t, s)``, each of which reveals a token of every sequence.

    There is no grid: the times ``[B]`` are those at which so many masks, and one less, are expected. Every step waits
    for the device once.
    """
    size_B = state.generation_mask.sum(1)
    for step in range(int(size_B.max()) if len(size_B) else 0):
        count_B = state.masked().sum(1)
        if not bool(count_B.any()):
            break
        t, s = (state.process.time_of_count((count_B - less).clamp(min=0), size_B) for less in (0, 1))
        adaptive_step(step, t, s)
        recorder.after_step()


def walk(recorder: Recorder, times: Iterable[tuple[Tensor, Tensor]], reverse_step: ReverseStep) -> None:
    """Take every step from ``t`` to ``s`` (``[B]`` each): ``reverse_step(step, t, s)``."""
    for t, s in times:
        reverse_step(recorder.steps, t, s)
        recorder.after_step()
