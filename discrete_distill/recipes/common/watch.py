"""Sequences in the terminal as they resolve: step by step, or block by block."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from torch import Tensor

from ...process import Denoiser
from ...samplers import BlockwiseSampler, Sampler, SamplerOutput

Frame = Callable[[Tensor, Tensor, str], RenderableType]
"""``frame(state, before, title)``: sequences int64 ``[B, L]``, the state that was shown before, and what is shown."""

States = Generator[tuple[str, Tensor], None, SamplerOutput]


def watch(
    sampler: Sampler, denoiser: Denoiser, x_init: Tensor, *, frame: Frame, console: Console, pause: float, **given: Any
) -> SamplerOutput:
    """Draw sequences and show them: of a `BlockwiseSampler` each block as soon as it is finished, of another sampler
    the states of its steps, once all of them are drawn.

    Args:
        sampler: draws them.
        denoiser: that is sampled.
        x_init: int64 ``[B, L]``.
        frame: how a state looks.
        console: where it is shown.
        pause: seconds that each state stays.
        **given: further arguments of the sampler's call.
    """
    states = (_blocks if isinstance(sampler, BlockwiseSampler) else _steps)(sampler, denoiser, x_init, given)
    before = x_init
    with Live(console=console, refresh_per_second=20) as live:
        while True:
            try:
                title, state = next(states)
            except StopIteration as end:
                output: SamplerOutput = end.value
                return output
            live.update(frame(state, before, title), refresh=True)
            time.sleep(pause)
            before = state


def _blocks(sampler: Any, denoiser: Denoiser, x_init: Tensor, given: dict[str, Any]) -> States:
    yield "before the first block", x_init
    blocks, state = sampler.stream(denoiser, x_init=x_init, **given), x_init
    while True:
        try:
            block = next(blocks)
        except StopIteration as end:
            output: SamplerOutput = end.value
            return output
        state = state.clone()
        state[block.rows[:, None].expand_as(block.positions)[block.real], block.positions[block.real]] = block.tokens[
            block.real
        ]
        first, last = int(block.positions[block.real].min()), int(block.positions[block.real].max())
        yield f"tokens {first + 1} to {last + 1} of {x_init.shape[1]}", state


def _steps(sampler: Any, denoiser: Denoiser, x_init: Tensor, given: dict[str, Any]) -> States:
    output: SamplerOutput = sampler(denoiser, x_init=x_init, return_history=True, **given)
    history = output.history or [output.sequences]
    for step, state in enumerate(history):
        yield f"step {step} of {len(history) - 1}", state
    return output
