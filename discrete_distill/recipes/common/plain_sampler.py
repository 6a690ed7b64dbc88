"""How the recipes sample any network without guidance: as it was trained, whole sequences at once or block by block."""

from __future__ import annotations

from typing import Any

from ...process import MaskedDiffusion, UnmaskingOrder
from ...samplers import AncestralSampler, ConfidenceSampler, Frame, Sampler, in_blocks_of


def blocks_to_draw(network: Any, length: int | Frame, *, num_given: int = 0) -> int:
    """Blocks of a sequence in which something is drawn; 1 of a network that attends both ways.

    Args:
        network: that will be sampled.
        length: tokens of a sequence.
        num_given: tokens of the prompt that it begins with.
    """
    block_length = getattr(network, "block_length", None)
    if block_length is None:
        return 1
    if isinstance(length, Frame):
        length = len(length.prefix) + length.length + len(length.suffix)
    return -(-length // block_length) - num_given // block_length


def plain_sampler(
    process: MaskedDiffusion,
    denoiser: Any,
    length: int | Frame,
    *,
    num_steps: int,
    num_given: int = 0,
    temperature: float = 1.0,
    order: UnmaskingOrder = "random",
    by_confidence: bool = False,
) -> Sampler:
    """Ancestral sampling; of a network that reads by blocks, of one block after another, on a cache.

    Args:
        process: mask and schedule.
        denoiser: that will be sampled.
        length: tokens of a sequence.
        num_steps: evaluations for a sequence; blocks share them, and each has one pass more that keeps its keys.
        num_given: tokens of the prompt that every sequence begins with; blocks of it have no share.
        temperature: of the tokens.
        order: of `AncestralSampler`.
        by_confidence: reveal the most certain tokens first, in place of an order.

    Raises:
        ValueError: if there are more blocks than steps.
    """
    blocks = blocks_to_draw(denoiser, length, num_given=num_given)
    if num_steps < blocks:
        raise ValueError(
            f"{blocks} blocks of {denoiser.block_length} tokens take {blocks} steps or more, got {num_steps}; raise "
            "the steps"
        )
    options: Any = {"num_steps": num_steps // blocks, "temperature": temperature}
    if by_confidence:
        return in_blocks_of(denoiser, ConfidenceSampler(process, **options))
    return in_blocks_of(denoiser, AncestralSampler(process, order=order, **options))
