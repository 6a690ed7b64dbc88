"""Block-wise semi-autoregressive sampling over any sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from ..canvas import Canvas
from ..checks import check_choice, check_count
from ..process import Denoiser
from .options import Sampler
from .output import SamplerOutput
from .rga import RGASampler
from .trajectory import StepCallback, checked_callback


@dataclass(frozen=True)
class BlockwiseSampler:
    """Finishes one block of positions after another, from left to right, each with ``sampler``.

    LLaDA's semi-autoregressive sampling (arXiv 2502.09992): the denoiser always sees the whole sequence, later blocks
    as masks. Each block runs through all steps of the sampler, and is told the times of its own grid. The blocks of a
    sequence are counted from the end of its prompt, so that neither the lengths of the other prompts nor padding move
    them. With ``ConfidenceSampler(process, num_steps=steps // num_blocks, greedy=True)`` the tokens are those of
    LLaDA's ``generate`` at temperature 0. Guidance by a prompt is guidance by what was given, not by finished blocks.

    Args:
        sampler: any sampler of this package.
        block_length: positions in a block; the last one may be shorter.
        align: where the first block of a sequence begins: "prompt", at its first mask; or "start", at its first real
            token.

    Raises:
        TypeError: if ``sampler`` is none, or ``block_length`` no integer.
        ValueError: if a block is empty, ``align`` is unknown, or the sampler may leave masks.
    """

    sampler: Sampler | RGASampler
    block_length: int
    align: Literal["prompt", "start"] = "prompt"

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, Sampler | RGASampler):
            raise TypeError(f"blocks are drawn by a sampler of this package, got {type(self.sampler).__name__}")
        check_count("block_length", self.block_length)
        check_choice("align", self.align, ("prompt", "start"))
        if getattr(self.sampler, "noise_removal", "sample") == "none":
            raise ValueError('a block must be finished before the next begins; take another noise_removal than "none"')

    @torch.no_grad()
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
            TypeError: as in the sampler.
            ValueError: as in the sampler.
        """
        guides = 1 if isinstance(self.sampler, RGASampler) else 0
        if shape is None and len(others) == guides + 1:
            others, shape = others[:-1], others[-1]
        if len(others) != guides:
            raise TypeError(
                f"{type(self.sampler).__name__} takes {guides} arguments between denoiser and shape, got {len(others)}"
            )
        start = Canvas(
            self.sampler.process,
            shape,
            x_init=x_init,
            attention_mask=attention_mask,
            writable=writable,
            first_row=first_row,
            generator=_without_draws(generator),
            device=device,
        )
        given = ~start.process.is_masked(start.z)
        z, log_probs, nfe, evaluations = start.z, start.log_probs, 0, 0
        history: list[Tensor] = [z]
        step_of_all = _Counted(callback) if callback is not None else None
        for number, block in enumerate(self._blocks(start)):
            first = number == 0
            run = self.sampler.begin(
                denoiser,
                # An unconditional first block is still known to be all mask.
                shape if first else None,
                x_init=x_init if first else z,
                attention_mask=attention_mask,
                writable=block,
                first_row=first_row,
                generator=generator,
                device=device if first else None,
                cond=cond,
            )
            run.given = given
            out = self.sampler.fill(run, *others, return_history=return_history, callback=step_of_all)
            z, log_probs = out.sequences, log_probs + out.log_probs
            nfe, evaluations = nfe + out.nfe, evaluations + out.network_evaluations
            history.extend((out.history or [])[1:])
        return SamplerOutput(z, nfe, evaluations, log_probs, history if return_history else None)

    def _blocks(self, canvas: Canvas) -> list[Tensor]:
        """The movable positions of each block that has any, bool ``[B, L]``; one empty block if there are none."""
        movable_BL = canvas.movable
        begins_BL = movable_BL if self.align == "prompt" else canvas.attention_mask
        position = torch.arange(movable_BL.shape[1], device=movable_BL.device)
        first_B1 = 0 if begins_BL is None else begins_BL.to(torch.uint8).argmax(1, keepdim=True)
        number_BL = ((position - first_B1) // self.block_length).expand_as(movable_BL)
        present = number_BL[movable_BL].unique().tolist()
        return [movable_BL & (number_BL == number) for number in present] or [movable_BL]


def _without_draws(generator: Generator | None) -> Generator | None:
    """Another generator on the same device: the canvas of each block draws a seed, that of the whole none."""
    if generator is None:
        return Generator()
    return Generator(generator.device) if isinstance(generator, Generator) else generator


class _Counted:
    """A callback whose steps are numbered through all blocks."""

    def __init__(self, callback: StepCallback) -> None:
        checked_callback(callback)
        self.callback, self.steps = callback, 0

    def __call__(self, _step: int, state: Tensor) -> None:
        self.callback(self.steps, state)
        self.steps += 1
