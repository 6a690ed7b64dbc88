"""Decimal numbers with leading zeros."""

from __future__ import annotations

import torch
from torch import Tensor


def digits_of(numbers: Tensor, width: int) -> Tensor:
    """The last ``width`` decimal digits of each number, the highest first; int64 ``[..., width]``."""
    places = 10 ** torch.arange(width - 1, -1, -1, device=numbers.device)
    return numbers[..., None] // places % 10


def number_of(digits: Tensor) -> Tensor:
    """The number that digits ``[..., W]``, the highest first, stand for; int64 ``[...]``."""
    places = 10 ** torch.arange(digits.shape[-1] - 1, -1, -1, device=digits.device)
    return (digits * places).sum(-1)
