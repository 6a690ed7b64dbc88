"""Credit over the whole vocabulary, in the place of credit to the token that was drawn.

Shape suffixes: V vocabulary, N chosen positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...checks import check_same_shape


def vocabulary_cost(log_probs_NV: Tensor, log_ratio_NV: Tensor) -> Tensor:
    """Credit over the whole vocabulary: ``sum_v p(v) r_n(v)`` at every position, with the gradient through ``p`` alone.

    For a position ``i`` drawn independently of the others given its state, with the others ``x_S`` visible, the
    derivative of the KL of distributions of ``(x_S, x_i)`` in ``p(v)`` is ``log q(v | x_S) - log p_teacher(v | x_S)``
    plus what does not depend on ``v``: every token is scored, and no draw of ``x_i`` adds variance.

    Args:
        log_probs_NV: the student's log-probabilities, ``-inf`` allowed.
        log_ratio_NV: ``log q(v | x_S) - log p_teacher(v | x_S)``, finite where the student has mass.

    Returns:
        ``[N]``; its sum, or a weighted one, is the surrogate.

    Raises:
        TypeError: if an argument is no tensor of floating-point numbers.
        ValueError: if shapes do not fit.

    Examples:
        >>> log_probs = torch.tensor([[0.75, 0.25]]).log()
        >>> vocabulary_cost(log_probs, torch.tensor([[2.0, -2.0]]))  # 0.75 * 2 - 0.25 * 2
        tensor([1.])
    """
    check_same_shape(log_probs_NV=log_probs_NV, log_ratio_NV=log_ratio_NV)
    probs_NV = log_probs_NV.exp()
    return (probs_NV * torch.where(probs_NV > 0, log_ratio_NV.detach(), 0.0)).sum(-1)
