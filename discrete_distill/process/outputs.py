"""What a process returns.

Shape suffixes: B batch, L length.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Corruption(NamedTuple):
    """Noisy tokens ``x_t`` ``[B, L]``, the time ``t`` ``[B]`` that fits them, and the weight ``[B]`` that
    turns a sum over masked positions into an unbiased estimate of the whole NELBO sum."""

    x_t: Tensor
    t: Tensor
    weight: Tensor


class NelboOutput(NamedTuple):
    """Negative evidence lower bound.

    Attributes:
        loss: scalar, nats per token, averaged over all tokens of the batch (not over rows).
        nats: ``[B]``, nats per sequence.
        num_tokens: ``[B]``, tokens that could be masked.
    """

    loss: Tensor
    nats: Tensor
    num_tokens: Tensor
