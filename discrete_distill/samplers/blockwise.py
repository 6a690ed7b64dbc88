"""Block-wise semi-autoregressive sampling over any sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ..canvas import Canvas
from ..process import Denoiser
from .options import Sampler
from .output import SamplerOutput
from .rga import RGASampler
from .trajectory import StepCallback


@dataclass(frozen=True)
class BlockwiseSampler:
    """Finishes one block of positions after another, from left to right, each with ``sampler``.

    LLaDA's semi-autoregressive sampling (arXiv 2502.09992): the denoiser always sees the whole sequence, later blocks
    as masks. Each block runs through all steps of the sampler, and is told the times of its own grid. Guidance by a
    prompt takes the blocks that are finished as part of it.

    Args:
        sampler: any sampler of this package.
        block_length: positions in a block; the last one may be shorter.

    Raises:
        ValueError: if a block is empty, or the sampler may leave masks.
    """

    sampler: Sampler | RGASampler
    block_length: int

    def __post_init__(self) -> None:
        if self.block_length < 1:
            raise ValueError(f"block_length must be at least 1, got {self.block_length}")
        if getattr(self.sampler, "noise_removal", "sample") == "none":
            raise ValueError('a block must be finished before the next begins; take another noise_removal than "none"')

    def __call__(
        self,
        denoiser: Denoiser,
        *others: Any,
        shape: tuple[int, int] | None = None,
        x_init: Tensor | None = None,
        attention_mask: Tensor | None = None,
        writable: Tensor | None = None,
        first_row: int = 0,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        return_history: bool = False,
        callback: StepCallback | None = None,
        **cond: Any,
    ) -> SamplerOutput:
        """Draw sequences.

        Args:
            denoiser: any `Denoiser`.
            *others: what the sampler is passed beside it (a discriminator), and the shape if it is not named.

        The other arguments are those of the sampler.

        Raises:
            ValueError: as in the sampler.
        """
        if others and shape is None and _is_shape(others[-1]):
            others, shape = others[:-1], others[-1]
        start = Canvas(
            self.sampler.process,
            shape,
            x_init=x_init,
            attention_mask=attention_mask,
            writable=writable,
            generator=Generator(generator.device if generator is not None else "cpu"),
            device=device if device is not None else (generator.device if generator is not None else None),
        )
        blocks = [block for block in self._blocks(start.movable) if bool(block.any())] or [start.movable]
        z, log_probs, nfe, evaluations = start.z, start.log_probs, 0, 0
        history: list[Tensor] = [z]
        step_of_all = _Counted(callback) if callback is not None else None
        for number, block in enumerate(blocks):
            draw: Callable[..., SamplerOutput] = self.sampler
            out = draw(
                denoiser,
                *others,
                # An unconditional first block is still known to be all mask.
                shape=shape if number == 0 else None,
                x_init=x_init if number == 0 else z,
                attention_mask=attention_mask,
                writable=block,
                first_row=first_row,
                generator=generator,
                device=device,
                return_history=return_history,
                callback=step_of_all,
                **cond,
            )
            z, log_probs = out.sequences, log_probs + out.log_probs
            nfe, evaluations = nfe + out.nfe, evaluations + out.network_evaluations
            history.extend((out.history or [])[1:])
        return SamplerOutput(z, nfe, evaluations, log_probs, history if return_history else None)

    def _blocks(self, movable_BL: Tensor) -> list[Tensor]:
        """The movable positions of each block, bool ``[B, L]``."""
        number = torch.arange(movable_BL.shape[1], device=movable_BL.device) // self.block_length
        return [movable_BL & (number == block) for block in range(-(-movable_BL.shape[1] // self.block_length))]


class _Counted:
    """A callback whose steps are numbered through all blocks."""

    def __init__(self, callback: StepCallback) -> None:
        self.callback, self.steps = callback, 0

    def __call__(self, _step: int, state: Tensor) -> None:
        self.callback(self.steps, state)
        self.steps += 1


def _is_shape(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(size, int) for size in value)
