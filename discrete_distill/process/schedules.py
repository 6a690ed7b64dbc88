"""Masking schedules: the probability ``alpha(t)`` that a token is still visible at time ``t``.

Time runs from 0 (data, ``alpha`` near 1) to 1 (all mask, ``alpha`` near 0). A schedule has its derivative
and its inverse in closed form, for losses, weights and samplers.

Sources: log-linear, MDLM (arXiv 2406.07524); linear, LLaDA (arXiv 2502.09992); cosine, MaskGIT (arXiv
2202.04200); polynomial, MD4 (arXiv 2406.04329); geometric, SEDD (arXiv 2310.16834).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class MaskingSchedule(ABC):
    """``alpha: [0, 1] -> [0, 1]``, strictly decreasing, with derivative and inverse, all elementwise.

    Examples:
        >>> class QuadraticSchedule(MaskingSchedule):
        ...     def alpha(self, t): return (1 - t) ** 2
        ...     def dalpha(self, t): return -2 * (1 - t)
        ...     def inverse(self, alpha): return 1 - alpha.sqrt()
        >>> MaskedDiffusion(mask_token_id=8, schedule=QuadraticSchedule()).visible_probability(torch.tensor(0.5))
        tensor(0.2500)
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is visible at time ``t`` (any shape)."""

    @abstractmethod
    def dalpha(self, t: Tensor) -> Tensor:
        """Derivative ``d alpha / d t``, per unit of time; negative."""

    @abstractmethod
    def inverse(self, alpha: Tensor) -> Tensor:
        """The time ``t`` at which ``alpha(t)`` takes the given value."""

    def sigma(self, t: Tensor) -> Tensor:
        """Total noise ``sigma(t) = -log alpha(t)``, in nats: what MDLM networks are conditioned on."""
        return -torch.log(self.alpha(t))

    def elbo_weight(self, t: Tensor) -> Tensor:
        """``omega(t) = -alpha'(t) / (1 - alpha(t))``: the rate of revealing a masked token, per time."""
        return -self.dalpha(t) / (1.0 - self.alpha(t))


@dataclass(frozen=True)
class LogLinearSchedule(MaskingSchedule):
    """``alpha(t) = 1 - (1 - eps) t``, whose ``sigma`` is log-linear. MDLM, arXiv 2406.07524.

    Args:
        eps: what is still visible at ``t = 1``; 1e-3 in MDLM. In ``[0, 1)``.

    Raises:
        ValueError: if ``eps`` is outside ``[0, 1)``.

    Examples:
        >>> schedule = LogLinearSchedule(eps=0.0)
        >>> schedule.alpha(torch.tensor(0.25)), schedule.sigma(torch.tensor(0.5))  # 3/4 and log 2
        (tensor(0.7500), tensor(0.6931))
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 0.0 <= self.eps < 1.0:
            raise ValueError(f"eps must lie in [0, 1), got {self.eps}")

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - (1.0 - self.eps) * t

    def sigma(self, t: Tensor) -> Tensor:
        # log1p keeps it exact where t is small.
        return -torch.log1p(-(1.0 - self.eps) * t)

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -(1.0 - self.eps))

    def inverse(self, alpha: Tensor) -> Tensor:
        return (1.0 - alpha) / (1.0 - self.eps)


@dataclass(frozen=True)
class LinearSchedule(MaskingSchedule):
    """``alpha(t) = 1 - t``: a fraction ``t`` is masked. LLaDA, arXiv 2502.09992.

    Examples:
        >>> schedule, t = LinearSchedule(), torch.tensor(0.25)
        >>> schedule.alpha(t), schedule.elbo_weight(t)  # 1 - t and 1 / t
        (tensor(0.7500), tensor(4.))
    """

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -1.0)

    def inverse(self, alpha: Tensor) -> Tensor:
        return 1.0 - alpha


@dataclass(frozen=True)
class CosineSchedule(MaskingSchedule):
    """``alpha(t) = 1 - cos(pi/2 (1 - t))``: few tokens are revealed first. MaskGIT, arXiv 2202.04200.

    Examples:
        >>> CosineSchedule().alpha(torch.tensor([1.0, 2 / 3, 1 / 3, 0.0]))  # After a third of the time 13% is visible.
        tensor([0.0000, 0.1340, 0.5000, 1.0000])
    """

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - torch.cos(0.5 * math.pi * (1.0 - t))

    def dalpha(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi * torch.sin(0.5 * math.pi * (1.0 - t))

    def inverse(self, alpha: Tensor) -> Tensor:
        return 1.0 - (2.0 / math.pi) * torch.acos(1.0 - alpha)


@dataclass(frozen=True)
class PolynomialSchedule(MaskingSchedule):
    """``alpha(t) = 1 - t ** exponent``. MD4, arXiv 2406.04329.

    Args:
        exponent: above 0; 1 is the linear schedule, 2 masks slowly near the data.

    Raises:
        ValueError: if ``exponent`` is not positive.

    Examples:
        >>> PolynomialSchedule(exponent=3.0).alpha(torch.tensor(0.5))  # 1 - 1/8
        tensor(0.8750)
    """

    exponent: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 < self.exponent < math.inf:
            raise ValueError(f"exponent must be positive and finite, got {self.exponent}")

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t**self.exponent

    def dalpha(self, t: Tensor) -> Tensor:
        return -self.exponent * t ** (self.exponent - 1.0)

    def inverse(self, alpha: Tensor) -> Tensor:
        return (1.0 - alpha) ** (1.0 / self.exponent)


@dataclass(frozen=True)
class GeometricSchedule(MaskingSchedule):
    """``alpha(t) = exp(-sigma_min^(1-t) sigma_max^t)``. SEDD, arXiv 2310.16834.

    Args:
        sigma_min: total noise at ``t = 0``, in nats.
        sigma_max: total noise at ``t = 1``, in nats.

    Raises:
        ValueError: unless ``0 < sigma_min < sigma_max``.

    Examples:
        >>> GeometricSchedule(sigma_min=0.01, sigma_max=25.0).sigma(torch.tensor(0.5))  # The geometric mean.
        tensor(0.5000)
    """

    sigma_min: float = 1e-3
    sigma_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"0 < sigma_min < sigma_max is needed, got {self.sigma_min} and {self.sigma_max}")

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min ** (1.0 - t) * self.sigma_max**t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.sigma(t))

    def dalpha(self, t: Tensor) -> Tensor:
        sigma = self.sigma(t)
        return -sigma * math.log(self.sigma_max / self.sigma_min) * torch.exp(-sigma)

    def inverse(self, alpha: Tensor) -> Tensor:
        log_ratio = math.log(self.sigma_max / self.sigma_min)
        return (torch.log(-torch.log(alpha)) - math.log(self.sigma_min)) / log_ratio

    def elbo_weight(self, t: Tensor) -> Tensor:
        # expm1 keeps 1 - alpha exact where sigma is small.
        return self.dalpha(t) / torch.expm1(-self.sigma(t))
