"""Corrupted data: what methods without student paths learn from, and what their losses share.

Shape suffixes: B batch, L length, V vocabulary, N masked positions, M fills.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.checkpoint import checkpoint

from ...checks import NO_MASK, check_tokens
from ...distributed.collectives import mean_over_processes
from ...kernels.chunked import DEFAULT_CHUNK_ROWS, chunks
from ...process import MaskedDiffusion, StratifiedTime
from ...process.blocks import BlockRows
from ...process.denoiser import LogitsOfPart
from ...process.sequences import real_tokens
from ...samplers import Frame


@dataclass
class MaskedBatch:
    """Masked states of a batch, and what networks are called with.

    Attributes:
        x_t: states with masks, int64 ``[B, L]``.
        t: times of ``x_t``, ``[B]``.
        loss_mask: bool ``[B, L]``, true at the masks that are predicted.
        attention_mask: bool ``[B, L]``, true at real tokens, or None.
        model_kwargs: what else the networks are given.
    """

    x_t: Tensor
    t: Tensor
    loss_mask: Tensor
    attention_mask: Tensor | None
    model_kwargs: Mapping[str, Any]

    @property
    def positions(self) -> Tensor:
        """Flattened positions of the loss, int64 ``[N]``, ascending."""
        return self.loss_mask.flatten().nonzero().squeeze(1)

    def num_counted(self) -> Tensor:
        """What the losses are averages over, on this process: the number of these positions."""
        return self.loss_mask.sum()

    def num_tokens(self) -> Tensor:
        """`num_counted`, mean over processes, at least 1. All processes must call it."""
        return mean_over_processes(self.num_counted().float()).clamp(min=1.0)

    def denoiser_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of a denoiser's call."""
        mask = {} if self.attention_mask is None else {"attention_mask": self.attention_mask}
        return {**self.model_kwargs, **mask}


@dataclass
class CorruptedData(MaskedBatch):
    """Clean sequences ``x_0``, int64 ``[B, L]``, and their masked states: the rollout of a method without paths."""

    x_0: Tensor

    @property
    def sequences(self) -> Tensor:
        """``x_0``."""
        return self.x_0

    @property
    def num_masked(self) -> Tensor:
        """Masked positions of each sequence, int64 ``[B]``."""
        return self.loss_mask.sum(1)

    def without_logits(self) -> CorruptedData:
        """Itself: it holds none."""
        return self


@dataclass
class PartedData(CorruptedData):
    """Corrupted data, of which each sequence or block counts equally.

    Attributes:
        num_parts: sequences or blocks, a number.
    """

    num_parts: Tensor

    def num_counted(self) -> Tensor:
        """``num_parts``."""
        return self.num_parts


def clean_sequences(
    process: MaskedDiffusion,
    reference: Tensor | None,
    shape: tuple[int | None, int | Frame | None],
    x_init: Tensor | None,
    attention_mask: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Reference sequences with the given tokens of ``x_init``, and where they may be masked.

    Args:
        process: names the mask.
        reference: clean tokens, int64 ``[B, L]``.
        shape: requested numbers of sequences and of tokens, None for any; a `Frame` is given and never masked.
        x_init: int64 ``[B, L]``; where it has no mask, its token is given and never masked.
        attention_mask: bool ``[B, L]``, true at real tokens; the others are never masked.

    Returns:
        Tokens int64 ``[B, L]``, and bool ``[B, L]``, or None if all of them may be masked.

    Raises:
        TypeError: if the reference is not int64, or the attention mask holds neither booleans nor integers.
        ValueError: if there is no reference, it is empty or of another shape than requested.
    """
    if reference is None:
        raise ValueError("this method corrupts reference sequences; pass reference=")
    check_tokens("reference", reference)
    if reference.ndim != 2 or not reference.numel():
        raise ValueError(f"reference has shape {list(reference.shape)}: give one sequence and one token or more")
    if x_init is None and isinstance(shape[1], Frame):
        batch_size, frame = len(reference) if shape[0] is None else shape[0], shape[1]
        x_init = frame.x_init(batch_size, mask_token_id=process.mask_token_id, device=reference.device)
    expected = tuple(x_init.shape) if x_init is not None else shape
    if any(one is not None and one != other for one, other in zip(expected, reference.shape, strict=True)):
        raise ValueError(f"reference has shape {list(reference.shape)}, but {list(expected)} was requested")
    generation_mask = None
    if x_init is not None:
        generation_mask = process.is_masked(x_init)
        reference = torch.where(generation_mask, reference, x_init)
    if attention_mask is not None:
        real = real_tokens(attention_mask, reference.shape)
        generation_mask = real if generation_mask is None else generation_mask & real
    if generation_mask is not None and not bool(generation_mask.any()):
        warnings.warn(NO_MASK, stacklevel=3)
    return reference, generation_mask


def refuse_masks(process: MaskedDiffusion, reference: Tensor, generation_mask: Tensor | None) -> None:
    """Refuse reference sequences that hold masks at generated positions; looked at where that waits for no device.

    Raises:
        ValueError: if they do.
    """
    if reference.device.type == "cpu" and bool(process.is_masked(reference, generation_mask).any()):
        raise ValueError(f"reference must be clean tokens, and holds masks (id {process.mask_token_id}); give data")


def corrupt_data(
    process: MaskedDiffusion,
    x_0: Tensor,
    *,
    block_length: int | None = None,
    generation_mask: Tensor | None = None,
    attention_mask: Tensor | None = None,
    minimum_masks: int = 1,
    generator: Generator | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> CorruptedData:
    """Mask ``k`` positions of each sequence, ``k`` uniform in ``minimum_masks ... n`` and stratified over the batch.

    Args:
        process: mask and schedule.
        x_0: int64 ``[B, L]``.
        block_length: positions in a block, each of which has a ``k`` of its own; None for the whole sequence. Blocks
            are counted from the first real token of a sequence.
        generation_mask: bool ``[B, L]``, the ``n`` positions that may be masked; all by default.
        attention_mask: bool ``[B, L]``, passed on to the networks.
        minimum_masks: where a sequence has so many positions.
        generator: source of randomness.
        model_kwargs: passed on to the networks.
    """
    if block_length is not None:
        free = torch.ones_like(x_0, dtype=torch.bool) if generation_mask is None else generation_mask
        layout = BlockRows(x_0, attention_mask, block_length)
        blocks = corrupt_data(
            process,
            layout.blocks(x_0, process.mask_token_id),
            generation_mask=layout.blocks(free, False),
            minimum_masks=minimum_masks,
            generator=generator,
        )
        loss_mask = layout.rows(blocks.loss_mask)
        t = process.time_of_count(loss_mask.sum(1), process.num_generated(x_0, free))
        x_t = x_0.masked_fill(loss_mask, process.mask_token_id)
        return CorruptedData(x_t, t, loss_mask, attention_mask, dict(model_kwargs or {}), x_0)
    size = process.num_generated(x_0, generation_mask)
    level = StratifiedTime().sample(len(x_0), device=x_0.device, generator=generator).t
    low = size.clamp(max=minimum_masks)
    count = (low + (level * (size - low + 1)).long()).minimum(size)
    x_t = process.corrupt_by_count(x_0, count, generation_mask=generation_mask, generator=generator)
    loss_mask = process.is_masked(x_t) & ~process.is_masked(x_0)
    t = process.time_of_count(count, size)
    return CorruptedData(x_t, t, loss_mask, attention_mask, dict(model_kwargs or {}), x_0)


def log_probs_of(process: MaskedDiffusion, logits_of: LogitsOfPart, tokens_NM: Tensor) -> Tensor:
    """Log-probabilities ``[N, M]`` of tokens, with gradient; the vocabulary is held for 384 positions at a time, and
    computed again in the backward pass.

    Args:
        process: whose mask and forbidden ids are left out.
        logits_of: see `logits_in_parts`.
        tokens_NM: int64 ``[N, M]``.
    """

    def part(rows: slice) -> Tensor:
        return process.masked_log_probs(logits_of(rows)).gather(1, tokens_NM[rows])

    return torch.cat([checkpoint(part, rows, use_reentrant=False) for rows in chunks_of(len(tokens_NM))])


def chunks_of(count: int) -> list[slice]:
    """Slices of positions whose logits are held at one time; an empty one if there is no position."""
    return chunks(count, DEFAULT_CHUNK_ROWS) or [slice(0, 0)]
