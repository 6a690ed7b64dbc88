"""Block-wise semi-autoregressive sampling over any sampler."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from ..checks import check_choice, check_count
from .call import Sampler, SamplerCall, StepCallback
from .options import SamplerOptions
from .output import SamplerOutput
from .state import SamplerState
from .trajectory import checked_callback


@dataclass(frozen=True)
class BlockwiseSampler(Sampler):
    """Finishes one block of positions after another, from left to right, each with ``sampler``.

    LLaDA's semi-autoregressive sampling (arXiv 2502.09992): the denoiser always sees the whole sequence, later blocks
    as masks. Each block runs through all steps of the sampler, and is passed the times of its own grid. The blocks of a
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

    Examples:
        >>> sampler = BlockwiseSampler(ConfidenceSampler(process, num_steps=2, greedy=True), block_length=4)
        >>> sampler(teacher, (2, 16), generator=generator).nfe  # Four blocks of two steps each.
        8
    """

    sampler: SamplerOptions
    _: KW_ONLY
    block_length: int
    align: Literal["prompt", "start"] = "prompt"

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, SamplerOptions):
            raise TypeError(f"blocks are drawn by a sampler of this package, got {type(self.sampler).__name__}")
        check_count("block_length", self.block_length)
        check_choice("align", self.align, ("prompt", "start"))
        if getattr(self.sampler, "noise_removal", "sample") == "none":
            raise ValueError('a block must be finished before the next begins; take another noise_removal than "none"')

    def draw(self, call: SamplerCall) -> SamplerOutput:
        start = self.sampler.begin(_with(call, generator=_without_draws(call.inputs["generator"])))
        x_t, log_probs, nfe, evaluations = start.tokens, start.log_probs, 0, 0
        history: list[Tensor] = [x_t]
        callback = None if call.callback is None else _Counted(call.callback)
        for number, block in enumerate(self._blocks(start)):
            # An unconditional first block is still known to be all mask.
            rest: dict[str, Any] = {} if number == 0 else {"shape": None, "x_init": x_t, "device": None}
            state = self.sampler.begin(_with(call, generation_mask=block, **rest))
            state.given = start.given
            out = self.sampler.finish(state, replace(call, callback=callback))
            x_t, log_probs = out.sequences, log_probs + out.log_probs
            nfe, evaluations = nfe + out.nfe, evaluations + out.network_evaluations
            history.extend((out.history or [])[1:])
        return SamplerOutput(x_t, nfe, evaluations, log_probs, history if call.return_history else None)

    def _blocks(self, state: SamplerState) -> list[Tensor]:
        """The generated positions of each block that has any, bool ``[B, L]``; one empty block if there are none."""
        generation_mask_BL = state.generation_mask
        begins_BL = generation_mask_BL if self.align == "prompt" else state.attention_mask
        position = torch.arange(generation_mask_BL.shape[1], device=generation_mask_BL.device)
        first_B1 = 0 if begins_BL is None else begins_BL.to(torch.uint8).argmax(1, keepdim=True)
        number_BL = ((position - first_B1) // self.block_length).expand_as(generation_mask_BL)
        present = number_BL[generation_mask_BL].unique().tolist()
        return [generation_mask_BL & (number_BL == number) for number in present] or [generation_mask_BL]


def _with(call: SamplerCall, **inputs: Any) -> SamplerCall:
    return replace(call, inputs={**call.inputs, **inputs})


def _without_draws(generator: Generator | None) -> Generator | None:
    """Another generator on the same device: the state of each block draws a seed, that of the whole none."""
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
