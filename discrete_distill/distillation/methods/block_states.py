"""Masked states of one block of a sequence: complementary random halves, or states along a recorded trajectory.

The blocks before the active one are given, those behind it are masked.

Shape suffixes: B batch, L length, C states of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ... import draws
from ...checks import check_count, check_number


@dataclass(frozen=True, kw_only=True)
class BlockHalves:
    """Two states of each sequence, in which complementary random halves of a block are masked (dParallel).

    Args:
        block_length: positions of a block, counted from the end of the prompt (paper: 32).
        mask_ratio: share of the block that the first state masks, in ``(0, 1)`` (paper: 0.5).

    Raises:
        TypeError: if the length is no integer.
        ValueError: if a number is out of range.

    Examples:
        >>> inside, behind = BlockHalves(block_length=4).masks(torch.ones(1, 12, dtype=torch.bool), generator=generator)
        >>> inside.sum(), inside.any(0).sum()  # The two states share out the four positions of a block.
        (tensor(4), tensor(4))
    """

    block_length: int = 32
    mask_ratio: float = 0.5

    num_states = 2

    def __post_init__(self) -> None:
        check_count("block_length", self.block_length)
        check_number("mask_ratio", self.mask_ratio, exclusive_minimum=0.0, exclusive_maximum=1.0)

    def masks(
        self,
        generation_mask: Tensor,
        *,
        reveal_step: Tensor | None = None,
        progress: float = 0.0,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw the masks of the states.

        Args:
            generation_mask: bool ``[B, L]``.
            reveal_step: not read.
            progress: not read.
            generator: source of randomness.

        Returns:
            Masks inside of the active block, bool ``[C, B, L]``, and all positions behind it, bool ``[B, L]``.
        """
        active, behind = active_block(generation_mask, self.block_length, generator)
        first = draws.rand(active.shape, device=active.device, generator=generator) < self.mask_ratio
        return torch.stack((active & first, active & ~first)), behind


@dataclass(frozen=True, kw_only=True)
class TrajectoryStates:
    """One state of each sequence, along the order in which its teacher revealed it (d3LLM, arXiv 2601.07568).

    Of the active block those positions are masked that the teacher revealed last: the state before one of its steps,
    with whole steps, so that at least the stated share is masked, and one position at least. Length and share change
    linearly over the training.

    Args:
        block_length: positions of a block, counted from the end of the prompt, in the first and in the last training
            step (paper: 16 and 32).
        mask_ratio: share of the block that is masked in the first and in the last training step (paper: 0 and 0.8).

    Raises:
        TypeError: if a length is no integer.
        ValueError: if a number is out of range.

    Examples:
        >>> states = TrajectoryStates(block_length=(4, 4), mask_ratio=(0.5, 0.5))
        >>> inside, behind = states.masks(torch.ones(1, 4, dtype=torch.bool), reveal_step=torch.tensor([[3, 0, 2, 1]]))
        >>> inside[0, 0]  # The half that was revealed last.
        tensor([ True, False,  True, False])
    """

    block_length: tuple[int, int] = (16, 32)
    mask_ratio: tuple[float, float] = (0.0, 0.8)

    num_states = 1

    def __post_init__(self) -> None:
        for length in self.block_length:
            check_count("block_length", length)
        for ratio in self.mask_ratio:
            check_number("mask_ratio", ratio, minimum=0.0, maximum=1.0)

    def masks(
        self,
        generation_mask: Tensor,
        *,
        reveal_step: Tensor | None = None,
        progress: float = 0.0,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw the active blocks, and mask them as the trajectories were; see `BlockHalves.masks`.

        Args:
            generation_mask: bool ``[B, L]``.
            reveal_step: int64 ``[B, L]``; see `Trajectories`.
            progress: share of the training that has passed, in ``[0, 1]``.
            generator: source of randomness.

        Raises:
            ValueError: without ``reveal_step``.
        """
        if reveal_step is None:
            raise ValueError(
                "TrajectoryStates masks along recorded trajectories: pass rows of a TrajectoryStore as the reference, "
                "or take BlockHalves"
            )
        length, ratio = (first + progress * (last - first) for first, last in (self.block_length, self.mask_ratio))
        active, behind = active_block(generation_mask, round(length), generator)
        size = active.sum(1, keepdim=True)
        count = (ratio * size).round().long().clamp(min=1).minimum(size)
        latest_first = reveal_step.masked_fill(~active, -1).sort(dim=1, descending=True).values
        step = latest_first.gather(1, (count - 1).clamp(min=0))
        return (active & (reveal_step >= step))[None], behind


def active_block(generation_mask: Tensor, block_length: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
    """Draw one block of each sequence; each is equally likely.

    Args:
        generation_mask: bool ``[B, L]``, true at the positions that are counted in blocks.
        block_length: positions of a block; the last one may be shorter.
        generator: source of randomness.

    Returns:
        The positions of the block, and those of later blocks, bool ``[B, L]`` each.
    """
    number_BL = (generation_mask.long().cumsum(1) - 1).div(block_length, rounding_mode="floor")
    blocks = (generation_mask.sum(1) - 1).clamp(min=0).div(block_length, rounding_mode="floor") + 1
    u = draws.rand((len(blocks),), device=generation_mask.device, generator=generator)
    chosen = (u * blocks).long().minimum(blocks - 1)[:, None]
    return generation_mask & (number_BL == chosen), generation_mask & (number_BL > chosen)
