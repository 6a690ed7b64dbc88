"""Speed: tokens per second with a median and a spread, and ratios that a busy machine does not decide."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Timings of one call.

    Attributes:
        name: of what was timed.
        tokens: made by each call.
        seconds: of each call, in order.

    Examples:
        >>> speed = Speed(name="student", tokens=1024, seconds=(0.5, 0.25, 1.0))
        >>> speed.latency, speed.tokens_per_second
        (0.5, 2048.0)
    """

    name: str
    tokens: int
    seconds: tuple[float, ...]

    @property
    def tokens_per_second(self) -> float:
        """At the median time."""
        return self.tokens / statistics.median(self.seconds)

    @property
    def latency(self) -> float:
        """Median seconds of a call: with one sequence a call, how long a reader waits for it."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Tokens per second at the third and the first quartile of the times: the middle half."""
        low, high = quartiles(self.seconds)
        return self.tokens / high, self.tokens / low


@dataclass(frozen=True, kw_only=True)
class SpeedRatio:
    """How many times faster one call is: median over rounds of the ratio in a round, and its quartiles.

    Examples:
        >>> student = Speed(name="student", tokens=1024, seconds=(0.5, 0.5))
        >>> teacher = Speed(name="teacher", tokens=1024, seconds=(1.0, 2.0))
        >>> speed_ratio(student, teacher).ratio  # Median of 2 and 4.
        3.0
    """

    name: str
    baseline: str
    ratio: float
    spread: tuple[float, float]


def measure_speeds(
    calls: Mapping[str, Callable[[], Tensor]],
    *,
    repeats: int = 5,
    warmup: int = 1,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Speed]:
    """Time calls in rounds, each once a round, so that other load on the machine affects all of them alike.

    Args:
        calls: by name; each returns the token ids that it made, any shape.
        repeats: rounds that count.
        warmup: rounds before them that do not.
        device: where the calls run; a CUDA device is synchronised before the clock is read.
        clock: seconds, rising.

    Raises:
        ValueError: without calls, if ``repeats`` is below 1 or ``warmup`` below 0, or a call makes no tokens or takes
            no time that the clock resolves.

    Examples:
        >>> samplers = {steps: AncestralSampler(process, num_steps=steps) for steps in (2, 16)}
        >>> calls = {
        ...     f"{steps} steps": lambda each=each: each(student, shape=(8, 16), generator=generator).sequences
        ...     for steps, each in samplers.items()
        ... }
        >>> speeds = measure_speeds(calls, repeats=3)
        >>> speeds["2 steps"].tokens, len(speeds["2 steps"].seconds)
        (128, 3)
    """
    if not calls or repeats < 1 or warmup < 0:
        raise ValueError(f"nothing to time: {len(calls)} calls, repeats = {repeats}, warmup = {warmup}")
    device = torch.device(device)
    tokens = dict.fromkeys(calls, 0)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_index in range(warmup + repeats):
        for name, call in calls.items():
            elapsed, made = _time_once(call, device, clock)
            if not made or not elapsed > 0.0:
                raise ValueError(f"{name!r} made {made} tokens in {elapsed} s, which is no speed; time a longer call")
            tokens[name] = made
            if round_index >= warmup:
                seconds[name].append(elapsed)
    return {name: Speed(name=name, tokens=tokens[name], seconds=tuple(seconds[name])) for name in calls}


def speed_ratio(speed: Speed, baseline: Speed) -> SpeedRatio:
    """Ratio of tokens per second, paired by round: time both with one `measure_speeds`.

    Raises:
        ValueError: if the two were timed in different numbers of rounds, or one has no tokens or no time.

    Examples:
        >>> student = Speed(name="4 steps", tokens=1024, seconds=(0.5, 0.4))
        >>> teacher = Speed(name="32 steps", tokens=1024, seconds=(4.0, 4.0))
        >>> speed_ratio(student, teacher).ratio  # Median of 8 and 10.
        9.0
    """
    if len(speed.seconds) != len(baseline.seconds):
        raise ValueError(
            f"ratios are taken round by round, but {speed.name!r} has {len(speed.seconds)} rounds and "
            f"{baseline.name!r} has {len(baseline.seconds)}; time both with one measure_speeds"
        )
    if not speed.seconds or min(speed.tokens, baseline.tokens, *speed.seconds, *baseline.seconds) <= 0:
        raise ValueError(f"{speed.name!r} and {baseline.name!r} must both have tokens and positive seconds")
    ratios = [
        (speed.tokens / ours) / (baseline.tokens / theirs)
        for ours, theirs in zip(speed.seconds, baseline.seconds, strict=True)
    ]
    return SpeedRatio(
        name=speed.name, baseline=baseline.name, ratio=statistics.median(ratios), spread=quartiles(ratios)
    )


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third, by linear interpolation between the sorted values."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def _time_once(call: Callable[[], Tensor], device: torch.device, clock: Callable[[], float]) -> tuple[float, int]:
    _synchronise(device)
    start = clock()
    made = call().numel()
    _synchronise(device)
    return clock() - start, made


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
