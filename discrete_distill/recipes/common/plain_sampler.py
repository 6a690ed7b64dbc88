"""How the recipes sample any network without guidance: as it was trained, whole sequences at once or block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...process import MaskedDiffusion
from ...samplers import AncestralSampler, ConfidenceSampler, Frame, Sampler, in_blocks_of


@dataclass(frozen=True)
class BlocksOfSequence:
    """How a network that reads by blocks cuts a sequence.

    Attributes:
        block_length: positions in a block.
        tokens: of a sequence.
    """

    block_length: int
    tokens: int

    @classmethod
    def of(cls, network: Any, length: int | Frame) -> BlocksOfSequence | None:
        """The layout of sequences of ``length`` tokens; None for a network that attends both ways."""
        block_length = getattr(network, "block_length", None)
        if block_length is None:
            return None
        if isinstance(length, Frame):
            length = len(length.prefix) + length.length + len(length.suffix)
        return cls(block_length, length)

    @property
    def count(self) -> int:
        """Blocks of a sequence."""
        return -(-self.tokens // self.block_length)


def plain_sampler(
    process: MaskedDiffusion,
    denoiser: Any,
    length: int | Frame,
    *,
    num_steps: int,
    temperature: float = 1.0,
    by_confidence: bool = False,
) -> Sampler:
    """Ancestral sampling; of a network that reads by blocks, of one block after another, on a cache.

    Args:
        process: mask and schedule.
        denoiser: that will be sampled.
        length: tokens of a sequence.
        num_steps: evaluations for a sequence; blocks share them, and each has one pass more that keeps its keys.
        temperature: of the tokens.
        by_confidence: reveal the most certain tokens first.

    Raises:
        ValueError: if there are more blocks than steps.
    """
    kind = ConfidenceSampler if by_confidence else AncestralSampler
    layout = BlocksOfSequence.of(denoiser, length)
    if layout is None:
        return kind(process, num_steps=num_steps, temperature=temperature)
    if num_steps < layout.count:
        raise ValueError(
            f"{layout.tokens} tokens in blocks of {layout.block_length} take {layout.count} steps or more, got "
            f"{num_steps}; raise the steps"
        )
    in_block = kind(process, num_steps=num_steps // layout.count, temperature=temperature)
    return in_blocks_of(denoiser, in_block)
