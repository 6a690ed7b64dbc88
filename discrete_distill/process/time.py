"""Distributions ``pi(t)`` of the time at which a loss looks, with the density that importance weighting needs.

Each distribution lives on ``[low, high]`` inside ``[0, 1]`` by an affine map, so that its density is exact there:
clamping, as research code does, would put atoms on the ends and bias every importance weight.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from .. import draws
from ..checks import check_count, check_floats, check_generator, check_number


class TimeSample(NamedTuple):
    """Times ``[n]`` in ``[0, 1]`` and their density ``pi(t)`` ``[n]``, per unit of time.

    Examples:
        >>> t, density = UniformTime(low=0.5).sample(3, generator=generator)
        >>> density.tolist(), bool((t >= 0.5).all())
        ([2.0, 2.0, 2.0], True)
    """

    t: Tensor
    density: Tensor


@dataclass(frozen=True)
class TimeDistribution(ABC):
    """A distribution of ``t`` on ``[low, high]``.

    Args:
        low: minimum time; 0 is data.
        high: maximum time; 1 is all mask.

    Raises:
        ValueError: unless ``0 <= low < high <= 1``.

    Examples:
        >>> grid = torch.linspace(0.0, 1.0, 1001)
        >>> [round(float(torch.trapezoid(pi.density(grid), grid)), 2) for pi in (UniformTime(), BetaTime())]
        [1.0, 1.0]
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.low < self.high <= 1.0:
            raise ValueError(f"0 <= low < high <= 1 is needed, got low = {self.low}, high = {self.high}")

    @abstractmethod
    def _unit_sample(self, n: int, device: torch.device, generator: Generator | None) -> Tensor:
        """``n`` draws on ``[0, 1]``."""

    @abstractmethod
    def _unit_density(self, u: Tensor) -> Tensor:
        """Density on ``[0, 1]``."""

    def sample(self, n: int, *, device: torch.device | str = "cpu", generator: Generator | None = None) -> TimeSample:
        """Draw ``n`` times, fp32 ``[n]``, with their densities."""
        check_count("n", n)
        check_generator(generator)
        width = self.high - self.low
        u = self._unit_sample(n, torch.device(device), generator)
        # The density is that of the draw itself: through t, rounding could push u = 1 outside of the distribution.
        return TimeSample((self.low + width * u).clamp(max=self.high), self._unit_density(u) / width)

    def density(self, t: Tensor) -> Tensor:
        """``pi(t)``, per unit of time; 0 outside ``[low, high]``.

        Raises:
            TypeError: if times are no floating-point numbers.
        """
        check_floats("t", t)
        width = self.high - self.low
        u = (t - self.low) / width
        inside = (t >= self.low) & (t <= self.high)
        return torch.where(inside, self._unit_density(u.clamp(0.0, 1.0)) / width, torch.zeros_like(u))


@dataclass(frozen=True)
class UniformTime(TimeDistribution):
    """Independent uniform times.

    Examples:
        >>> times = UniformTime(low=0.1, high=0.3)
        >>> times.density(torch.tensor([0.05, 0.2]))
        tensor([0., 5.])
        >>> out = process.nelbo(teacher, data, time_distribution=times, generator=generator)
    """

    def _unit_sample(self, n: int, device: torch.device, generator: Generator | None) -> Tensor:
        return draws.rand((n,), device=device, generator=generator)

    def _unit_density(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)


@dataclass(frozen=True)
class StratifiedTime(UniformTime):
    """One uniform time in each of ``n`` equal cells, in random order (VDM, arXiv 2107.00630).

    Every single time is uniform, so the density is that of ``UniformTime``; their mean varies far less.

    Examples:
        >>> t = StratifiedTime().sample(4, generator=generator).t
        >>> (4 * t).long().sort().values.tolist()  # One time in each quarter.
        [0, 1, 2, 3]
    """

    def _unit_sample(self, n: int, device: torch.device, generator: Generator | None) -> Tensor:
        cell = draws.randperm(n, device=device, generator=generator)
        return (cell + draws.rand((n,), device=device, generator=generator)) / n


@dataclass(frozen=True)
class BetaTime(TimeDistribution):
    """``Beta(a, b)`` stretched to ``[low, high]``; DiDi-Instruct (arXiv 2509.25035) uses (1, 1) and (2, 2).

    Args:
        a: first shape, above 0; larger moves mass to ``t = 1``.
        b: second shape, above 0; larger moves mass to ``t = 0``.

    Raises:
        ValueError: if a shape is not positive.

    Examples:
        >>> BetaTime(a=2.0, b=2.0).density(torch.tensor([0.0, 0.5]))  # 6 t (1 - t)
        tensor([0.0000, 1.5000])
    """

    a: float = 2.0
    b: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("a", self.a, exclusive_minimum=0.0)
        check_number("b", self.b, exclusive_minimum=0.0)

    def _unit_sample(self, n: int, device: torch.device, generator: Generator | None) -> Tensor:
        # torch.distributions takes no generator; this is the primitive it is made of.
        x, y = (
            torch._standard_gamma(
                torch.full((n,), shape, device=draws.source(device, generator)), generator=generator
            ).to(device)
            for shape in (self.a, self.b)
        )
        return x / (x + y)

    def _unit_density(self, u: Tensor) -> Tensor:
        log_norm = math.lgamma(self.a + self.b) - math.lgamma(self.a) - math.lgamma(self.b)
        return math.exp(log_norm) * u ** (self.a - 1.0) * (1.0 - u) ** (self.b - 1.0)
