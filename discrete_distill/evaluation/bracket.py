"""Temperatures that enclose an entropy: how wide a frontier must be is seen while it is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .frontier import Frontier, measure_frontier
from .judges import Judge


def measure_frontier_around(
    entropy: float,
    sample: Callable[[float, int], Tensor],
    judge: Judge,
    *,
    temperatures: Sequence[float] = (0.9, 1.0),
    spacing: float = 0.1,
    limits: tuple[float, float] = (0.5, 1.6),
    **options: Any,
) -> Frontier:
    """A frontier whose curves, for every seed, reach ``entropy`` from both sides, if ``limits`` let them.

    Entropy rises with temperature; from ``temperatures`` on, the next is ``spacing`` above the highest, or below the
    lowest, until the entropy is enclosed.

    Args:
        entropy: to be enclosed, in nats.
        temperatures: measured first.
        spacing: between further ones.
        limits: minimum and maximum temperature.
        **options: other arguments of `measure_frontier`, as are ``sample`` and ``judge``.

    Raises:
        ValueError: if ``spacing`` is not positive, ``entropy`` not finite, ``limits`` are no range, or as in
            `measure_frontier`.

    Examples:
        >>> def sample(temperature, seed):
        ...     sampler = AncestralSampler(process, num_steps=4, temperature=temperature)
        ...     return sampler(student, shape=(8, 16), generator=torch.Generator().manual_seed(seed)).sequences
        >>> frontier = measure_frontier_around(1.8, sample, judge, method="4 steps", seeds=(0, 1), limits=(0.8, 1.2))
        >>> {point.temperature for point in frontier.points} >= {0.9, 1.0}
        True
    """
    if not 0.0 < spacing < math.inf:
        raise ValueError(f"spacing must be positive and finite, got {spacing}")
    if not math.isfinite(entropy):
        raise ValueError(f"an entropy that can be enclosed is finite, got {entropy}")
    if not 0.0 < limits[0] <= limits[1] < math.inf:
        raise ValueError(f"limits must be two rising positive temperatures, got {limits}")

    def at(values: Sequence[float]) -> Frontier:
        return measure_frontier(sample, judge, temperatures=values, **options)

    frontier = at(temperatures)
    low, high = min(temperatures), max(temperatures)
    while True:
        curves = [[p.entropy for p in frontier.points if p.seed == seed] for seed in frontier.seeds]
        lower, higher = round(low - spacing, 6), round(high + spacing, 6)
        further = []
        if any(min(curve) > entropy for curve in curves) and lower >= limits[0]:
            further.append(low := lower)
        if any(max(curve) < entropy for curve in curves) and higher <= limits[1]:
            further.append(high := higher)
        if not further:
            return frontier
        frontier = replace(frontier, points=frontier.points + at(further).points)
