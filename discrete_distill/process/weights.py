"""Weights ``omega(t)`` of a loss over time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..checks import check_floats
from .schedules import LogLinearSchedule, MaskingSchedule


class TimeWeight(ABC):
    """A positive weight ``omega(t)``, elementwise in ``t`` of any shape.

    Examples:
        >>> class LateWeight(TimeWeight):
        ...     def __call__(self, t): return 1.0 + t
        >>> log_ratio = DiscriminatorLogRatio(process, discriminator)
        >>> estimator = ScoreFunctionIntegralKL(process, log_ratio, weight=LateWeight())
        >>> estimator.weight(torch.tensor([0.0, 0.5]))
        tensor([1.0000, 1.5000])
    """

    @abstractmethod
    def __call__(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ConstantWeight(TimeWeight):
    """``omega(t) = value``.

    Raises:
        ValueError: if ``value`` is not positive.

    Examples:
        >>> ConstantWeight(2.0)(torch.tensor([0.1, 0.9]))
        tensor([2., 2.])
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.value < math.inf:
            raise ValueError(f"the weight must be positive and finite, got {self.value}")

    def __call__(self, t: Tensor) -> Tensor:
        check_floats("t", t)
        return torch.full_like(t, self.value)


@dataclass(frozen=True)
class ElboWeight(TimeWeight):
    """``omega(t) = -alpha'(t) / (1 - alpha(t))``, kept in ``[low, high]``; DiDi-Instruct clips to [0.1, 10].

    Args:
        schedule: whose ELBO it is the weight of.
        low: minimum weight.
        high: maximum weight; ``inf`` leaves the ELBO as it is.

    Raises:
        ValueError: unless ``0 <= low <= high``.

    Examples:
        >>> weight = ElboWeight(LinearSchedule(), low=0.1, high=10.0)
        >>> weight(torch.tensor([0.01, 0.5, 1.0]))  # 1 / t, clipped
        tensor([10.,  2.,  1.])
    """

    schedule: MaskingSchedule = field(default_factory=LogLinearSchedule)
    low: float = 0.0
    high: float = float("inf")

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.high:
            raise ValueError(f"0 <= low <= high is needed, got low = {self.low}, high = {self.high}")

    def __call__(self, t: Tensor) -> Tensor:
        check_floats("t", t)
        return self.schedule.elbo_weight(t).clamp(self.low, self.high)
