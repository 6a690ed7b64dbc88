"""Information measures of enumerated distributions, in nats. All are differentiable in the probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from .enumeration import check_distribution, check_probabilities


def check_same_sequences(p: Tensor, q: Tensor) -> None:
    """Raise ValueError if two distributions are over different sequences, or an entry of one is no probability."""
    check_probabilities("p", p)
    check_probabilities("q", q)
    if p.shape != q.shape:
        raise ValueError(f"the distributions are over different sequences: shapes {list(p.shape)} and {list(q.shape)}")


def safe_log(p: Tensor) -> Tensor:
    """``log p`` with -inf, and no gradient, where ``p = 0``."""
    positive = p > 0
    return torch.where(positive, torch.where(positive, p, 1.0).log(), float("-inf"))


def kl_terms(p: Tensor, q: Tensor) -> Tensor:
    """``p log(p / q)`` elementwise: 0 where ``p = 0``, inf where only ``q = 0``."""
    positive = p > 0
    safe_p = torch.where(positive, p, 1.0)
    safe_q = torch.where(positive, q, 1.0)
    return torch.where(positive, p * (safe_p.log() - safe_q.log()), 0.0)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """``KL(p || q) = sum p log(p / q)`` in nats, a scalar; inf where ``p`` has support that ``q`` lacks.

    Args:
        p: probabilities, any shape.
        q: probabilities, same shape.

    Raises:
        ValueError: if the shapes differ.

    Examples:
        >>> kl(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))  # log(2)
        tensor(0.6931)
    """
    check_same_sequences(p, q)
    return kl_terms(p, q).sum()


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """``1/2 sum |p - q|``, in ``[0, 1]``.

    Raises:
        ValueError: if the shapes differ.

    Examples:
        >>> total_variation(torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5]))
        tensor(0.2500)
    """
    check_same_sequences(p, q)
    return 0.5 * (p - q).abs().sum()


def entropy(p: Tensor) -> Tensor:
    """``-sum p log p`` over all entries, in nats.

    Raises:
        TypeError: if ``p`` does not hold floating-point numbers.
        ValueError: if an entry is no probability.

    Examples:
        >>> entropy(torch.tensor([0.5, 0.5, 0.0]))  # log(2)
        tensor(0.6931)
    """
    check_probabilities("p", p)
    return torch.special.entr(p).sum()


def position_marginals(distribution: Tensor) -> Tensor:
    """Distribution of each position alone, ``[L, K]``.

    Examples:
        >>> position_marginals(torch.tensor([[0.4, 0.1], [0.2, 0.3]]))
        tensor([[0.5000, 0.5000],
                [0.6000, 0.4000]])
    """
    length, _ = check_distribution(distribution)
    others = [[j for j in range(length) if j != i] for i in range(length)]
    return torch.stack([distribution.sum(axes) if axes else distribution for axes in others])


def agreement(distribution: Tensor) -> Tensor:
    """Probability that two samples have the same word at a position, mean over positions: ``mean_l sum_v p_l(v)^2``.

    Examples:
        >>> agreement(torch.tensor([[0.5, 0.0], [0.0, 0.5]]))  # Each position is 0 or 1, equally often.
        tensor(0.5000)
    """
    return position_marginals(distribution).square().sum(1).mean()


def collision(distribution: Tensor) -> Tensor:
    """Probability that two samples are one sequence: ``sum_x p(x)^2``.

    Examples:
        >>> collision(torch.tensor([[0.5, 0.0], [0.0, 0.5]]))  # Of two sequences, "0 0" or "1 1".
        tensor(0.5000)
    """
    return distribution.square().sum()


def total_correlation(distribution: Tensor) -> Tensor:
    """``sum_i H(x_i) - H(x)`` in nats: what one parallel step must lose in forward KL.

    Examples:
        >>> total_correlation(torch.tensor([[0.5, 0.0], [0.0, 0.5]]))  # Two copies of one bit: 2 log(2) - log(2).
        tensor(0.6931)
    """
    return entropy(position_marginals(distribution)) - entropy(distribution)
