"""Which tokens read which: padding and blocks, as networks take them.

Shape suffixes: B batch, L length, Q tokens that read, C tokens that are read, H heads, d width of a head, M longest
length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import PairMask


def row_positions(real_BL: Tensor) -> Tensor:
    """Positions counted from the first real token of each row, int64 ``[B, L]``; -1 at padding."""
    first_B1 = real_BL.to(torch.uint8).argmax(1, keepdim=True)
    places_L = torch.arange(real_BL.shape[1], device=real_BL.device)
    return torch.where(real_BL, places_L - first_B1, -1)


def places_before(real_BL: Tensor) -> Tensor:
    """Where a shifted model predicts each token, one place before it, int64 ``[B, L]``. Nothing stands before the first
    real token of a row, which keeps its own place."""
    places_L = torch.arange(real_BL.shape[1], device=real_BL.device)
    return torch.where(row_positions(real_BL) == 0, places_L, (places_L - 1).clamp(min=0))


def readable(query_positions: Tensor, key_positions: Tensor, block_length: int | None) -> Tensor:
    """Bool ``[B, 1, Q or 1, C]``, true where a token is read: real ones, and with blocks those up to the reader's own.

    Padding reads all real tokens, and a row without any reads its padding: no row of a softmax is empty.

    Args:
        query_positions: int64 ``[B, Q]``, -1 at padding; see `row_positions`.
        key_positions: int64 ``[B, C]``, likewise.
        block_length: positions in a block; None for attention both ways.
    """
    real_BC = key_positions >= 0
    real_BC = real_BC | ~real_BC.any(1, keepdim=True)
    if block_length is None:
        return real_BC[:, None, None, :]
    query_block_BQ = torch.where(query_positions < 0, torch.iinfo(torch.long).max, query_positions // block_length)
    key_block_BC = key_positions // block_length
    return (real_BC[:, None, :] & (key_block_BC[:, None, :] <= query_block_BQ[:, :, None]))[:, None]


def noisy_and_clean(positions: Tensor, block_length: int) -> PairMask:
    """The mask of a pass over ``[x_t | x_0]`` (BD3-LM, arXiv 2503.09573).

    A noisy token reads the noisy tokens of its own block and the clean ones of earlier blocks; a clean token reads
    clean ones up to its own block. Padding reads the padding of its own half, so that no row of a softmax is empty.

    Args:
        positions: int64 ``[B, L]``, -1 at padding; see `row_positions`.
        block_length: positions in a block.
    """
    block, padding = positions // block_length, positions < 0
    never, noisy_padding, clean_padding, clean_query, clean_key = torch.iinfo(torch.long).max, -1, -2, -3, -4
    noisy = torch.where(padding, noisy_padding, block)
    return PairMask(
        query_group=torch.cat((noisy, torch.where(padding, clean_padding, clean_query)), dim=1),
        key_group=torch.cat((noisy, torch.where(padding, clean_padding, clean_key)), dim=1),
        query_limit=torch.cat((torch.where(padding, -1, block), torch.where(padding, -1, block + 1)), dim=1),
        key_time=torch.cat((torch.full_like(block, never), torch.where(padding, never, block)), dim=1),
    )


def additive(readable: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a token is read, the lowest number where it is not."""
    zeros = torch.zeros(readable.shape, dtype=dtype, device=readable.device)
    return zeros.masked_fill(~readable, torch.finfo(dtype).min)


def biased(
    bias_HMM: Tensor, q_BHLd: Tensor, attention_mask: Tensor | None, places: tuple[Tensor, Tensor] | None
) -> Tensor:
    """What is added to attention scores: a bias for each pair of positions, ``[B or 1, H, L, C]``, and where there is a
    mask -inf at the keys that it hides.

    Args:
        bias_HMM: for sequences of up to ``M`` positions.
        q_BHLd: the queries, whose precision is taken.
        attention_mask: bool, true at keys that are attended to; broadcast to ``[B, H, L, C]``.
        places: positions of the queries, int64 ``[B or 1, L]``, and of the keys, ``[B or 1, C]``; None if both are
            ``0 ... L - 1``.
    """
    if places is None:
        bias = bias_HMM[None, :, : q_BHLd.shape[2], : q_BHLd.shape[2]]
    else:
        bias = bias_HMM[:, places[0][:, :, None], places[1][:, None, :]].transpose(0, 1)
    bias = bias.to(q_BHLd.dtype)
    return bias if attention_mask is None else bias.masked_fill(~attention_mask, float("-inf"))
