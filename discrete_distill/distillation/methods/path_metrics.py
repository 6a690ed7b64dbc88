"""Figures of student paths that show mode collapse: how alike the samples of a batch are, how sure the first draws.

All are tensors: nothing here waits for the device, and no network is called.

Shape suffixes: B batch, P compared rows, L length, R revealed positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..agreement import sample_agreement
from ..rollout import Rollout


def path_metrics(rollout: Rollout, entropies: Sequence[Tensor]) -> dict[str, Tensor]:
    """Agreement of two samples, and the entropy of the tokens that were revealed first.

    Args:
        rollout: student paths.
        entropies: of the student's predictions at the ``R`` positions that each step revealed, nats, one for each step.

    Returns:
        ``sample_agreement`` as in `agreement_metrics`, and ``first_entropy``, the mean over the tokens of the first
        step that revealed any, in nats; detached scalars.
    """
    first_R = next((each for each in entropies if len(each)), entropies[0])
    first = first_R.detach().sum() / max(len(first_R), 1)
    return {**agreement_metrics(rollout), "first_entropy": first}


def agreement_metrics(rollout: Rollout) -> dict[str, Tensor]:
    """``sample_agreement`` of a rollout, see `sample_agreement`; nothing where no two rows may be compared.

    Examples:
        >>> rollout = IntermediateStateMatcher(process)(student, (8, 16), generator=generator)
        >>> 0.0 < agreement_metrics(rollout)["sample_agreement"] < 0.3  # About 1/8 for independent uniform tokens.
        tensor(True)
    """
    return {} if rollout.agreement is None else {"sample_agreement": rollout.agreement}


@torch.no_grad()
def reference_agreement(rollout: Rollout, reference: Tensor) -> Tensor:
    """Probability that two reference sequences have the same token at a position; at most 64 are compared.

    Returns:
        A scalar in ``[0, 1]``; NaN where a position is given, for the references of a group then stand for one another,
        or where there are fewer than two.

    Raises:
        ValueError: if the reference has another shape than the samples.
    """
    rollout.check_reference(reference)
    x_0, loss_mask = rollout.judged(reference)
    agreement = sample_agreement(x_0, rollout.generation_mask, loss_mask, group_size=1, branching=False)
    if agreement is None:
        return torch.full((), torch.nan, dtype=torch.double, device=x_0.device)
    return torch.where(rollout.generation_mask.all(), agreement.double(), torch.nan)
