"""Masks of padding, as networks take them.

Shape suffixes: B batch, L length, H heads, d width of a head, M longest length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def real_tokens(attention_mask: Tensor, shape: Sequence[int]) -> Tensor:
    """Bool ``[B, L]``, true at real tokens."""
    if tuple(attention_mask.shape) != tuple(shape):
        raise ValueError(
            f"attention_mask must have the shape of the tokens, {list(shape)}, got {list(attention_mask.shape)}"
        )
    if attention_mask.is_floating_point() or attention_mask.is_complex():
        raise TypeError(f"attention_mask must be bool, or integers of which 0 is padding, got {attention_mask.dtype}")
    return attention_mask.bool()


def additive_mask(x_t: Tensor, real_BL: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``[B, 1, L, L]``: 0 where a token is read, the lowest number where it is padding."""
    batch, length = x_t.shape
    mask = torch.zeros(batch, 1, length, length, dtype=dtype, device=x_t.device)
    if real_BL is None:
        return mask
    return mask.masked_fill(~real_BL[:, None, None, :], torch.finfo(dtype).min)


def biased(bias_HMM: Tensor, q_BHLd: Tensor, attention_mask: Tensor | None) -> Tensor:
    """What is added to attention scores: a bias for each pair of positions, ``[1, H, L, L]``, and where there is a mask
    -inf at the keys that it hides, ``[B, H, L, L]``.

    Args:
        bias_HMM: for sequences of up to ``M`` positions.
        q_BHLd: the queries, whose precision is taken.
        attention_mask: bool, true at keys that are attended to; broadcast to ``[B, H, L, L]``.
    """
    length = q_BHLd.shape[2]
    bias = bias_HMM[None, :, :length, :length].to(q_BHLd.dtype)
    return bias if attention_mask is None else bias.masked_fill(~attention_mask, float("-inf"))
