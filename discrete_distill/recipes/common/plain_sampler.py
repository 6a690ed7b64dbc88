"""How the recipes sample any network without guidance: as it was trained, whole sequences at once or block by block."""

from __future__ import annotations

from typing import Any

from ...process import MaskedDiffusion
from ...samplers import AncestralSampler, BlockwiseSampler, ConfidenceSampler, Frame, Sampler


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
    block_length = getattr(denoiser, "block_length", None)
    blocks = 1
    if block_length is not None:
        tokens = length if isinstance(length, int) else len(length.prefix) + length.length + len(length.suffix)
        blocks = -(-tokens // block_length)
        if num_steps < blocks:
            raise ValueError(
                f"{tokens} tokens in blocks of {block_length} take {blocks} steps or more, got {num_steps}; raise "
                "the steps"
            )
    kind = ConfidenceSampler if by_confidence else AncestralSampler
    sampler = kind(process, num_steps=num_steps // blocks, temperature=temperature)
    if block_length is None:
        return sampler
    return BlockwiseSampler(sampler, block_length=block_length, align="start", cache="exact")
