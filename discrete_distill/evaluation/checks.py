"""Checks of what every figure takes: token ids of samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def check_token_ids(sequences_NL: Tensor, what: str = "samples") -> None:
    """Refuse what is no set of sequences.

    Args:
        sequences_NL: token ids, integer ``[N, L]``.
        what: they are, for the message.
    """
    if not isinstance(sequences_NL, Tensor) or sequences_NL.dtype not in INTEGERS:
        found = sequences_NL.dtype if isinstance(sequences_NL, Tensor) else type(sequences_NL).__name__
        raise TypeError(f"{what} must be a tensor of integer token ids, got {found}")
    if sequences_NL.ndim != 2 or sequences_NL.numel() == 0:
        raise ValueError(f"{what} must be token ids [N, L] with N, L >= 1, got shape {list(sequences_NL.shape)}")


def exponential(nats: float) -> float:
    """``exp(nats)``, infinite where it exceeds the largest number."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
