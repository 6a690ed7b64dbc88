"""Certainty of a denoiser at a position: the orders in which tokens are revealed, most certain first.

Shape suffixes: B batch, L length, N positions, n positions of a chunk, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..checks import check_choice
from ..kernels import STREAM_ORDER, SampledRows
from .filtering import TokenDistribution
from .state import SamplerState, Statistic

Order = Literal["confidence", "margin", "entropy"]
ORDERS = ("confidence", "margin", "entropy")


def check_order(order: str) -> None:
    """Raise ValueError unless the order is known."""
    check_choice("order", order, ORDERS)


def certainty(order: Order, distribution: TokenDistribution) -> Statistic:
    """``statistic(logits, drawn, part) -> [n]``, greater where the denoiser is surer.

    "confidence": log-probability of the drawn token; "margin": probability of the most likely token minus that of the
    second; "entropy": minus the entropy at the position, in nats. All of the distribution that tokens are drawn from.
    """

    def confidence(_logits_nV: Tensor, drawn: SampledRows, _part: slice) -> Tensor:
        return drawn.log_probs[:, 0]

    def margin(logits_nV: Tensor, _drawn: SampledRows, _part: slice) -> Tensor:
        top_n2 = distribution.probabilities(logits_nV).topk(2, dim=1).values
        return (top_n2[:, 0] - top_n2[:, 1]).float()

    def entropy(_logits_nV: Tensor, drawn: SampledRows, _part: slice) -> Tensor:
        assert drawn.entropy is not None
        return -drawn.entropy

    return {"confidence": confidence, "margin": margin, "entropy": entropy}[order]


def order_noise(state: SamplerState, step: int, temperature: float) -> Tensor | None:
    """Gumbel noise ``[B, L]`` times ``temperature``; None at 0.

    The ``k`` largest of scores plus Gumbel noise are ``k`` draws without replacement from the softmax of the scores.
    """
    if temperature == 0.0:
        return None
    return -temperature * torch.log(-torch.log(state.uniform(step, STREAM_ORDER)))


def rank_of(scores_BL: Tensor) -> Tensor:
    """Rank of each position in its sequence, 0 for the highest score; of equal ones the first comes first."""
    scores_BL = torch.nan_to_num(scores_BL, nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    return scores_BL.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
