"""What a process returns.

Shape suffixes: B batch, L length.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Corruption(NamedTuple):
    """Noisy tokens ``x_t`` ``[B, L]``, the time ``t`` ``[B]`` that fits them, and a weight ``[B]``.

    The weight turns a sum over masked positions into an unbiased estimate of the whole NELBO sum.

    Examples:
        >>> corruption = process.draw_corruption(data[:2], by="count", generator=generator)
        >>> num_masks = process.is_masked(corruption.x_t).sum(1)
        >>> (corruption.weight * num_masks).tolist()  # The length, however many masks there are.
        [16.0, 16.0]
    """

    x_t: Tensor
    t: Tensor
    weight: Tensor


class NelboOutput(NamedTuple):
    """Negative evidence lower bound.

    Attributes:
        loss: scalar, nats per token, averaged over all tokens of the batch (not over rows).
        nats: ``[B]``, nats per sequence.
        num_tokens: ``[B]``, tokens that could be masked.

    Examples:
        >>> out = process.nelbo(teacher, data[:2], by="count", generator=generator)
        >>> out.num_tokens.tolist(), [round(nats / 16, 4) for nats in out.nats.tolist()]
        ([16, 16], [2.0794, 2.0794])
    """

    loss: Tensor
    nats: Tensor
    num_tokens: Tensor
