"""How alike the samples of a batch are, by which mode collapse shows.

Shape suffixes: B batch, P compared rows, L length.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_ROWS = 64  # compared with one another: P^2 L comparisons


@torch.no_grad()
def sample_agreement(
    x_0: Tensor, generation_mask: Tensor, loss_mask: Tensor, *, group_size: int, branching: bool
) -> Tensor | None:
    """Estimate the probability that two samples have the same token where both were generated.

    Of pairs of different rows that were drawn independently of each other given the prompt: rows with the same given
    tokens. Where paths branch, rows of a group share theirs, so one row of each group is compared with those of the
    others, whatever their prompts. At most 64 rows are compared. Nothing waits for the device.

    Args:
        x_0: samples, int64 ``[B, L]``.
        generation_mask: bool ``[B, L]``, positions that were generated.
        loss_mask: bool ``[B, L]``, those of them that are compared.
        group_size: consecutive rows in a group.
        branching: whether rows of a group share their path up to one step.

    Returns:
        A scalar in ``[0, 1]``, 0 where no two rows share a compared position; None where the batch has fewer than two
        rows that may be compared.
    """
    every = group_size if branching else 1
    x_PL, generated_PL, counted_PL = (each[::every][:MOST_ROWS] for each in (x_0, generation_mask, loss_mask))
    if len(x_PL) < 2:
        return None
    pairs_PP = ~torch.eye(len(x_PL), dtype=torch.bool, device=x_PL.device)
    if not branching and group_size > 1:
        given_PL = torch.where(generated_PL, -1, x_PL)
        pairs_PP = pairs_PP & (given_PL[:, None] == given_PL).all(-1)
    both_PPL = counted_PL[:, None] & counted_PL & pairs_PP[:, :, None]
    equal_PPL = (x_PL[:, None] == x_PL) & both_PPL
    return equal_PPL.sum() / both_PPL.sum().clamp(min=1)
