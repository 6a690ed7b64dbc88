"""Where the blocks of each sequence lie, and the part of a state that belongs to one of them.

Shape suffixes: B batch, L length, b sequences of a block, K its positions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..process import Denoiser
from .faults import Faults
from .inputs import checked_mask, start_of
from .state import SamplerState

Align = Literal["prompt", "start"]


class Block(NamedTuple):
    """Positions of some sequences.

    Attributes:
        rows: which sequences, int64 ``[b]``, ascending.
        positions: int64 ``[b, K]``, where they lie in the batch.
        real: bool ``[b, K]``, false behind the end of a sequence, and at padding.
    """

    rows: Tensor
    positions: Tensor
    real: Tensor

    def of(self, values_BL: Tensor) -> Tensor:
        """Values ``[b, K]`` at the positions."""
        return values_BL[self.rows[:, None], self.positions]

    def write(self, values_BL: Tensor, new: Tensor) -> Tensor:
        """The values ``[B, L]`` with new ones ``[b, K]`` at the real positions."""
        flat = (self.rows[:, None] * values_BL.shape[1] + self.positions)[self.real]
        return values_BL.flatten().index_copy(0, flat, new[self.real]).view_as(values_BL)


class BlockLayout:
    """Blocks of each sequence, numbered from the one that holds its first generated token.

    Args:
        state: before the first step.
        block_length: positions in a block.
        align: "prompt" counts from the first generated token of each sequence, "start" from its first real one.

    Attributes:
        first_real: index of the first real token of each sequence, int64 ``[B]``.
        before: positions of each sequence before its block 0, int64 ``[B]``, counted from its first real token.
        number: block of each position, int64 ``[B, L]``; negative before block 0.
        count: blocks of each sequence up to its last generated token, int64 ``[B]``; 0 where none is generated.
    """

    def __init__(self, state: SamplerState, block_length: int, align: Align) -> None:
        self.block_length, self.real = block_length, state.attention_mask
        generated = state.generation_mask
        length, device = generated.shape[1], generated.device
        self.first_real = generated.new_zeros(len(generated), dtype=torch.long)
        if self.real is not None:
            self.first_real = self.real.to(torch.uint8).argmax(1)
        first_generated = generated.to(torch.uint8).argmax(1)
        whole = (first_generated - self.first_real) // block_length * block_length
        self.before = first_generated - self.first_real if align == "prompt" else whole
        self.places = torch.arange(length, device=device)
        begin = self.first_real + self.before
        self.number = (self.places - begin[:, None]).div(block_length, rounding_mode="floor")
        self.count = torch.where(generated, self.number + 1, 0).amax(1)

    def block(self, number: int, rows: Tensor, width: int | None = None) -> Block:
        """A block of some sequences, or ``width`` positions from its first one on."""
        width = self.block_length if width is None else width
        begin = (self.first_real + self.before)[rows] + number * self.block_length
        return self._at(rows, begin[:, None] + torch.arange(width, device=rows.device))

    def check_gaps(self) -> None:
        """Raise ValueError if there is padding between the real tokens of a sequence."""
        if self.real is None:
            return
        last = len(self.places) - self.real.flip(1).to(torch.uint8).argmax(1)
        gaps = self.real.any(1) & (last - self.first_real != self.real.sum(1))
        if bool(gaps.any()):
            row = int(gaps.nonzero()[0])
            raise ValueError(
                f"attention_mask of sequence {row} has padding between real tokens, and a cache holds tokens that "
                "follow one another: pad on the left or on the right"
            )

    def check_together(self) -> None:
        """Raise ValueError if the blocks of one sequence lie elsewhere than those of another, or there is padding."""
        rows = self.count > 0
        padded = False if self.real is None else not bool(self.real[rows].all())
        if padded or len(places := self.before[rows].unique()) > 1:
            what = "there is padding" if padded else f"prompts have {places.tolist()} tokens"
            raise ValueError(
                f"the model counts positions from the first key of its cache, alike in all sequences, and {what}: give "
                "prompts and sequences of one length, or one sequence at a time"
            )

    def prompts(self) -> Block:
        """What stands before block 0 of all sequences, from the first real token on; not real behind it."""
        rows = torch.arange(len(self.before), device=self.before.device)
        places = torch.arange(max(int(self.before.max()), 0), device=rows.device)
        block = self._at(rows, self.first_real[:, None] + places)
        return block._replace(real=block.real & (places < self.before[:, None]))

    def all_positions(self) -> Block:
        """The whole batch."""
        rows = torch.arange(len(self.number), device=self.number.device)
        positions = self.places.expand_as(self.number)
        return Block(rows, positions, torch.ones_like(positions, dtype=torch.bool))

    def _at(self, rows: Tensor, positions: Tensor) -> Block:
        inside = positions < len(self.places)
        positions = positions.clamp(max=len(self.places) - 1)
        return Block(rows, positions, inside if self.real is None else inside & self.real[rows[:, None], positions])


def part_of(
    state: SamplerState, block: Block, generation_mask: Tensor, denoiser: Denoiser, model_kwargs: Mapping[str, Any]
) -> SamplerState:
    """The state of a block: its tokens alone, with the counters of random draws that they have in the batch.

    Args:
        state: of the whole batch.
        block: whose positions.
        generation_mask: bool ``[B, L]``, what is generated in the block.
        denoiser: of tokens ``[b, K]``.
        model_kwargs: of the denoiser's call.
    """
    made = copy.copy(state)
    for name in ("tokens", "given", "log_probs"):
        setattr(made, name, block.of(getattr(state, name)))
    made.generation_mask = block.of(generation_mask) & block.real
    for name in ("position_numbers", "draw_numbers"):
        setattr(made, name, block.of(getattr(state, name).view_as(state.tokens)).flatten())
    made.attention_mask, made.one_state, made.nfe, made.other_calls = block.real, False, 0, 0
    made.faults = Faults(torch.zeros_like(made.generation_mask), torch.zeros_like(made.generation_mask[:, 0]))
    made.denoiser, made.model_kwargs = denoiser, dict(model_kwargs)
    return made


def take_over(state: SamplerState, block: Block, part: SamplerState) -> None:
    """Write what was drawn in a block into the state of the whole batch."""
    state.tokens = block.write(state.tokens, part.tokens)
    state.log_probs = block.write(state.log_probs, part.log_probs)
    state.one_state = False


def with_room(inputs: Mapping[str, Any], max_new_tokens: int, mask_token_id: int) -> dict[str, Any]:
    """Arguments of a call with masks behind the last real token of each prompt.

    Args:
        inputs: arguments of the `SamplerState` by name.
        max_new_tokens: masks of each sequence.
        mask_token_id: the mask.
    """
    if inputs["x_init"] is None:
        raise ValueError(
            f"max_new_tokens = {max_new_tokens} counts tokens behind prompts, and there is no x_init: pass "
            "x_init=prompts, or leave max_new_tokens out"
        )
    x, _ = start_of(mask_token_id, inputs["shape"], inputs["x_init"], inputs["device"], "cpu")
    real = checked_mask("attention_mask", inputs["attention_mask"], x)
    wanted = checked_mask("generation_mask", inputs["generation_mask"], x)
    length, places = x.shape[1], torch.arange(x.shape[1] + max_new_tokens, device=x.device)
    end_B1 = torch.full_like(x[:, :1], length)
    if real is not None:
        end_B1 = length - real.flip(1).to(torch.uint8).argmax(1, keepdim=True)
    new = (places >= end_B1) & (places < end_B1 + max_new_tokens)
    source = torch.where(places < end_B1, places, places - max_new_tokens).clamp(0, length - 1)
    return {
        **inputs,
        "x_init": x.gather(1, source).masked_fill(new, mask_token_id),
        "attention_mask": None if real is None else real.gather(1, source) | new,
        "generation_mask": None if wanted is None else wanted.gather(1, source) | new,
    }
