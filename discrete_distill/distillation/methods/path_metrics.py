"""Figures of student paths that show mode collapse: how alike the samples of a batch are, how sure the first draws.

All are tensors: nothing here waits for the device, and no network is called.

Shape suffixes: B batch, P compared rows, L length, R revealed rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rollout import Rollout

MOST_ROWS = 64  # compared with one another: P^2 L comparisons


def path_metrics(rollout: Rollout, entropies: Sequence[Tensor], *, branching: bool = False) -> dict[str, Tensor]:
    """Agreement of two samples, and the entropy of the tokens that were revealed first.

    Args:
        rollout: student paths.
        entropies: of the student's predictions at the ``R`` positions that each step revealed, nats, one for each step.
        branching: whether rows of a group share their path up to one step.

    Returns:
        ``sample_agreement`` as in `agreement_metrics`, and ``first_entropy``, the mean over the tokens of the first
        step that revealed any, in nats; detached scalars.
    """
    first_R = next((each for each in entropies if len(each)), entropies[0])
    first = first_R.detach().sum() / max(len(first_R), 1)
    return {**agreement_metrics(rollout, branching=branching), "first_entropy": first}


@torch.no_grad()
def agreement_metrics(rollout: Rollout, *, branching: bool = False) -> dict[str, Tensor]:
    """Probability that two samples of the batch have the same token where both were generated.

    Of pairs of different rows that were drawn independently of each other given the prompt: rows with the same given
    tokens. Where paths branch, rows of a group share theirs, so one row of each group is compared with those of the
    others, whatever their prompts. At most 64 rows are compared.

    Args:
        rollout: student paths.
        branching: whether rows of a group share their path up to one step.

    Returns:
        ``sample_agreement``, a scalar in ``[0, 1]``, 0 where no two rows share a generated position; nothing where the
        batch has fewer than two rows that may be compared.
    """
    x_PL, generated_PL = rollout.sequences, rollout.generation_mask
    if branching:
        x_PL, generated_PL = x_PL[:: rollout.group_size], generated_PL[:: rollout.group_size]
    x_PL, generated_PL = x_PL[:MOST_ROWS], generated_PL[:MOST_ROWS]
    if len(x_PL) < 2:
        return {}
    pairs_PP = ~torch.eye(len(x_PL), dtype=torch.bool, device=x_PL.device)
    if not branching and rollout.group_size > 1:
        given_PL = torch.where(generated_PL, -1, x_PL)
        pairs_PP = pairs_PP & (given_PL[:, None] == given_PL).all(-1)
    both_PPL = generated_PL[:, None] & generated_PL & pairs_PP[:, :, None]
    equal_PPL = (x_PL[:, None] == x_PL) & both_PPL
    return {"sample_agreement": equal_PPL.sum() / both_PPL.sum().clamp(min=1)}


@torch.no_grad()
def reference_agreement(rollout: Rollout, reference: Tensor) -> Tensor:
    """Probability that two reference sequences have the same token at a position; at most 64 are compared.

    Args:
        rollout: that they go with.
        reference: clean tokens, int64 ``[B, L]``.

    Returns:
        A scalar in ``[0, 1]``; NaN where a position is given, for the references of a group then stand for one another,
        or where there are fewer than two.

    Raises:
        ValueError: if the reference has another shape than the samples.
    """
    rollout.check_reference(reference)
    x_PL = reference[:MOST_ROWS]
    pairs = len(x_PL) * (len(x_PL) - 1) * x_PL.shape[1]
    equal = (x_PL[:, None] == x_PL).sum() - x_PL.numel()
    return (
        torch.where(rollout.generation_mask.all(), equal.double() / max(pairs, 1), torch.nan)
        if pairs
        else equal * torch.nan
    )
