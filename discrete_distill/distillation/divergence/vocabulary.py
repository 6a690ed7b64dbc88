"""Credit over the whole vocabulary, in the place of credit to the token that was drawn.

Shape suffixes: V vocabulary, N chosen positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...checks import check_per_row, check_same_shape


def vocabulary_surrogate(log_probs_NV: Tensor, log_ratio_NV: Tensor, weight_N: Tensor | None = None) -> Tensor:
    """Credit over the whole vocabulary: ``sum_n w_n sum_v p(v) r_n(v)``, the gradient through ``p`` alone.

    For a position ``i`` drawn independently of the others given its state, with the others ``x_S`` visible, the
    derivative of the KL of distributions of ``(x_S, x_i)`` in ``p(v)`` is ``log q(v | x_S) - log p_teacher(v | x_S)``
    plus what does not depend on ``v``: every token is scored, and no draw of ``x_i`` adds variance.

    Args:
        log_probs_NV: the student's log-probabilities, ``-inf`` allowed.
        log_ratio_NV: ``log q(v | x_S) - log p_teacher(v | x_S)``, finite where the student has mass.
        weight_N: weight of each position; 1 by default.

    Returns:
        Scalar.

    Raises:
        TypeError: if an argument is no tensor of floating-point numbers.
        ValueError: if shapes do not fit.
    """
    if weight_N is not None:
        check_per_row("weight_N", weight_N, len(log_probs_NV))
    cost_N = vocabulary_cost(log_probs_NV, log_ratio_NV)
    return (cost_N if weight_N is None else weight_N * cost_N).sum()


def vocabulary_cost(log_probs_NV: Tensor, log_ratio_NV: Tensor) -> Tensor:
    """``sum_v p(v) r_n(v)`` at every position, ``[N]``; arguments as for `vocabulary_surrogate`."""
    check_same_shape(log_probs_NV=log_probs_NV, log_ratio_NV=log_ratio_NV)
    probs_NV = log_probs_NV.exp()
    return (probs_NV * torch.where(probs_NV > 0, log_ratio_NV.detach(), 0.0)).sum(-1)
