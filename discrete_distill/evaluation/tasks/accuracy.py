"""Accuracy with its error, and accuracy under parallelism."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ...checks import check_number

NORMAL_95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Fraction of answers that are right.

    Attributes:
        value: the fraction.
        num_correct: right answers.
        num_samples: answers.
        standard_error: binomial, ``sqrt(p (1 - p) / n)``; 0 where all answers or none are right.
        low: lower end of Wilson's 95% interval, which stays within 0 and 1 and is not empty where the error is 0.
        high: upper end.

    Examples:
        >>> found = accuracy(torch.tensor([True, True, True, False]))
        >>> found.value, round(found.standard_error, 4)  # sqrt(0.75 * 0.25 / 4)
        (0.75, 0.2165)
    """

    value: float
    num_correct: int
    num_samples: int
    standard_error: float
    low: float
    high: float


def accuracy(correct: Tensor) -> Accuracy:
    """Accuracy of answers, with Wilson's interval (J. Am. Stat. Assoc. 22, 1927).

    Args:
        correct: bool ``[N]``, as `Task.verify` gives it.

    Raises:
        TypeError: if it does not hold booleans.
        ValueError: if it has another shape, or there are no answers.

    Examples:
        >>> found = accuracy(torch.tensor([True] * 90 + [False] * 10))
        >>> found.value, round(found.low, 2), round(found.high, 2)
        (0.9, 0.83, 0.94)
    """
    if not isinstance(correct, Tensor) or correct.dtype != torch.bool:
        found = correct.dtype if isinstance(correct, Tensor) else type(correct).__name__
        raise TypeError(f"correct must be bool, got {found}; pass what Task.verify returns")
    if correct.ndim != 1 or correct.numel() == 0:
        raise ValueError(f"correct must be one value for each of one or more answers, got shape {list(correct.shape)}")
    n, k = len(correct), int(correct.sum())
    p, z = k / n, NORMAL_95
    scale = 1.0 + z * z / n
    center = (p + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Accuracy(
        value=p,
        num_correct=k,
        num_samples=n,
        standard_error=math.sqrt(p * (1 - p) / n),
        low=0.0 if k == 0 else center - half,
        high=1.0 if k == n else center + half,
    )


def accuracy_under_parallelism(
    tokens_per_forward: Sequence[float],
    accuracies: Sequence[float],
    *,
    best_accuracy: float | None = None,
    decay: float = 3.0,
    tolerance: float = 0.05,
) -> float:
    """AUP of d3LLM (arXiv 2601.07568): weighted area under accuracy against tokens per forward.

    With points ``(rho_i, y_i)`` in the order of ``rho``, accuracies in per cent and ``W(y) = min(exp(-decay (1 - y /
    y_max)), 1)``: ``rho_1 y_1 + sum_{i > 1} (rho_i - rho_{i-1}) (y_i W(y_i) + y_{i-1} W(y_{i-1})) / 2``. Points with
    ``y_i < y_1 - tolerance`` are left out, so that a fast sampler that is mostly wrong gains nothing.

    Args:
        tokens_per_forward: of each point, positive, in any order.
        accuracies: of each point, fractions in ``[0, 1]``.
        best_accuracy: ``y_max``, the best accuracy of any compared method on the task; by default that of the points,
            with which figures of different methods cannot be compared.
        decay: penalty of lost accuracy (d3LLM: 3).
        tolerance: loss of accuracy against the slowest point beyond which a point is left out (d3LLM: 5 points, 0.05).

    Returns:
        Per cent times tokens per forward, as d3LLM reports it.

    Raises:
        TypeError: if a value is no number.
        ValueError: if there are no points, numbers of values differ, two points have the same tokens per forward, or a
            value is out of range.

    Examples:
        >>> round(accuracy_under_parallelism([1.0, 3.0], [0.8, 0.8]), 6)  # 80% at one to three tokens a pass.
        240.0
    """
    if not len(accuracies) or len(accuracies) != len(tokens_per_forward):
        raise ValueError(
            f"each point needs its tokens per forward and its accuracy, got {len(tokens_per_forward)} and "
            f"{len(accuracies)} values"
        )
    rates = [check_number("tokens_per_forward", rate, exclusive_minimum=0.0) for rate in tokens_per_forward]
    values = [check_number("an accuracy", value, minimum=0.0, maximum=1.0) for value in accuracies]
    if len(set(rates)) < len(rates):
        raise ValueError(f"points must differ in their tokens per forward, got {rates}; average those that do not")
    check_number("decay", decay, minimum=0.0)
    check_number("tolerance", tolerance, minimum=0.0)
    points = sorted(zip(rates, values, strict=True))
    first = points[0][1]
    points = [point for point in points if point[1] >= first - tolerance - 1e-12]
    best = (
        max(values)
        if best_accuracy is None
        else check_number("best_accuracy", best_accuracy, exclusive_minimum=0.0, maximum=1.0)
    )

    def weighted(y: float) -> float:
        return 0.0 if y == 0.0 else y * min(math.exp(-decay * (1.0 - y / best)), 1.0)

    area = points[0][0] * first
    for (rate_before, y_before), (rate, y) in pairwise(points):
        area += (rate - rate_before) * (weighted(y) + weighted(y_before)) / 2.0
    return 100.0 * area
