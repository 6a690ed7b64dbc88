"""Checks of a batch of token ids, and of what is given for each of its rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_mask


def check_sequences(x: Tensor, generation_mask: Tensor | None) -> None:
    """Refuse what is no batch of token ids, or a mask that does not fit it; by type and shape alone."""
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"token ids must be integers, got {x.dtype}; convert them by .long()")
    if x.dim() != 2:
        raise ValueError(f"token ids must be [batch, length], got shape {tuple(x.shape)}")
    check_mask("generation_mask", generation_mask, x.shape)


def real_tokens(attention_mask: Tensor, shape: Sequence[int]) -> Tensor:
    """Bool ``[B, L]``, true at real tokens."""
    if tuple(attention_mask.shape) != tuple(shape):
        raise ValueError(
            f"attention_mask must have the shape of the tokens, {list(shape)}, got {list(attention_mask.shape)}"
        )
    if attention_mask.is_floating_point() or attention_mask.is_complex():
        raise TypeError(f"attention_mask must be bool, or integers of which 0 is padding, got {attention_mask.dtype}")
    return attention_mask.bool()


def check_level(name: str, value_B: Tensor, x: Tensor, *, integers: bool, maximum: Tensor | float = 1.0) -> None:
    """Refuse a time or a count for each row of ``x`` that is of another type, shape or range; the range is looked at on
    a CPU alone, so that nothing waits for another device.
    """
    if not isinstance(value_B, Tensor):
        raise TypeError(f"{name} must be a tensor, one value for each row, got {type(value_B).__name__}")
    if value_B.dtype == torch.bool or value_B.is_complex() or value_B.is_floating_point() == integers:
        raise TypeError(f"{name} must hold {'integers' if integers else 'floating-point numbers'}, got {value_B.dtype}")
    if value_B.shape != x.shape[:1]:
        raise ValueError(f"{name} must be one value for each row, [{len(x)}], got shape {tuple(value_B.shape)}")
    if value_B.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = ~((value_B >= 0) & (value_B <= maximum))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        limit = maximum if isinstance(maximum, float) else int(maximum[row])
        raise ValueError(f"{name} of row {row} is {value_B[row].item()}; it must lie in [0, {limit}]")
