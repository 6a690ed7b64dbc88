"""The likelihood bound of masked diffusion, of whole sequences or block by block.

Shape suffixes: B batch, L length, N blocks, b rows that are read at once, R masked positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Generator, Tensor

from ..checks import check_count
from ..kernels import token_losses
from .blocks import BlockRows, block_length_of, paired_logits, reads_blocks
from .conditions import check_conditions, take_rows
from .denoiser import Denoiser, check_ids, logits_in_parts
from .outputs import NelboOutput
from .sequences import check_sequences, real_tokens
from .time import TimeDistribution

if TYPE_CHECKING:
    from .masking import MaskedDiffusion


def nelbo(
    process: MaskedDiffusion,
    denoiser: Denoiser,
    x_0: Tensor,
    *,
    block_length: int | None = None,
    by: Literal["time", "count"] = "time",
    time_distribution: TimeDistribution | None = None,
    generation_mask: Tensor | None = None,
    generator: Generator | None = None,
    s: Tensor | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> NelboOutput:
    r"""Estimate the negative evidence lower bound; see `MaskedDiffusion.nelbo`, which has the arguments.

    .. math:: -\log p(x) \le \sum_b \int \omega(t)\, E \sum_{i \in b, x_{t,i} = m} -\log p(x_i | x_t^b, x^{<b})\, dt

    One block ``b`` is the whole sequence, which gives the bound of MDLM (arXiv 2406.07524), or each block has its own
    time and is given the clean ones before it (BD3-LM, arXiv 2503.09573). A `PairedDenoiser` reads all blocks in one
    pass over ``[x_t | x_0]``; any other denoiser is called once a block, on the clean blocks before it, the noisy
    block, and masks behind it. Blocks are counted from the first real token of each row. With blocks of one token by
    count, this is the exact negative log-likelihood of an autoregressive model.
    """
    check_sequences(x_0, generation_mask)
    check_conditions(model_kwargs, denoiser)
    check_ids(denoiser, process.mask_token_id)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    kwargs, batch = dict(model_kwargs or {}), len(x_0)
    block_length, real = _block_length(denoiser, block_length), None
    counted = torch.ones_like(x_0, dtype=torch.bool) if generation_mask is None else generation_mask
    if block_length is not None and "attention_mask" in kwargs:
        real = real_tokens(kwargs["attention_mask"], x_0.shape)
        counted = counted & real
    layout = BlockRows(x_0, real, x_0.shape[1] if block_length is None else block_length)
    counted_blocks = layout.blocks(counted, False)
    drawn = process.draw_corruption(
        layout.blocks(x_0, process.mask_token_id),
        by=by,
        generation_mask=counted_blocks,
        time_distribution=time_distribution,
        generator=generator,
    )
    masked = layout.rows(process.is_masked(drawn.x_t, counted_blocks))
    x_t, t_BN = x_0.masked_fill(masked, process.mask_token_id), drawn.t.view(batch, -1)
    weight_BL = drawn.weight.view(batch, -1).gather(1, layout.number.clamp(min=0))
    nats = []
    for first in range(0, batch, batch_size or max(batch, 1)):
        rows = slice(first, first + (batch_size or batch))
        conditions = {"s": None if s is None else s[rows], "model_kwargs": take_rows(kwargs, rows, batch)}
        read = _masked_logits(
            process, denoiser, x_t[rows], x_0[rows], t_BN[rows], masked[rows], layout.number[rows], conditions
        )
        nats += [_nats(process, x_0[rows], weight_BL[rows], read)]
    num_tokens = counted.sum(1)
    nats_B = torch.cat(nats) if nats else weight_BL.sum(1)
    return NelboOutput(nats_B.sum() / num_tokens.sum().clamp(min=1), nats_B, num_tokens)


def _block_length(denoiser: Any, block_length: int | None) -> int | None:
    """Positions in a block: as stated, or of the denoiser; None for whole sequences."""
    trained = block_length_of(denoiser)
    if block_length is None:
        return trained
    check_count("block_length", block_length)
    if trained not in (None, block_length):
        raise ValueError(
            f"block_length is {block_length} and the denoiser reads blocks of {trained}; pass block_length={trained}, "
            "or leave it out"
        )
    return block_length


def _masked_logits(
    process: MaskedDiffusion,
    denoiser: Any,
    x_t: Tensor,
    x_0: Tensor,
    t_bN: Tensor,
    masked: Tensor,
    number: Tensor,
    conditions: dict[str, Any],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Flattened masked positions ``[R]`` with their logits ``[R, V]``, of all blocks or of one after another."""
    if reads_blocks(denoiser):
        positions = masked.flatten().nonzero().squeeze(1)
        logits_of = paired_logits(denoiser, x_t, x_0, positions, model_kwargs=conditions["model_kwargs"])
        yield positions, logits_of(slice(None))
        return
    for block in range(t_bN.shape[1]):
        x_block = torch.where(number > block, process.mask_token_id, torch.where(number == block, x_t, x_0))
        positions = (masked & (number == block)).flatten().nonzero().squeeze(1)
        logits_of = logits_in_parts(
            denoiser, x_block, t_bN[:, block], positions, largest_id=process.mask_token_id, **conditions
        )
        yield positions, logits_of(slice(None))


def _nats(process: MaskedDiffusion, x_0: Tensor, weight_bL: Tensor, read: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """Weighted negative log-likelihood of the masked tokens of each row, ``[b]``."""
    nats, none = [], weight_bL.new_zeros(len(x_0))
    for positions, logits_RV in read:
        losses = token_losses(
            process.forbid(logits_RV), None, x_0.flatten()[positions], mask_token_id=process.mask_token_id
        )
        weighted = -losses.log_prob * weight_bL.flatten()[positions].to(losses.log_prob.dtype)
        nats.append(none.to(weighted.dtype).index_add(0, positions // x_0.shape[1], weighted))
    return torch.stack(nats).sum(0)
