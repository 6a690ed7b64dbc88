from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from discrete_distill.evaluation import Speed, measure_speeds, speed_ratio
from discrete_distill.evaluation.speed import quartiles


class Stopwatch:
    """A clock that only the timed calls advance."""

    def __init__(self) -> None:
        self.now = 100.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, tokens: int, durations: list[float]) -> object:
        remaining = iter(durations)

        def run() -> Tensor:
            self.order.append(name)
            self.now += next(remaining)
            return torch.zeros(2, tokens // 2)

        return run


def test_tokens_per_second_at_the_median_time_without_the_warm_up() -> None:
    watch = Stopwatch()
    calls = {"sampler": watch.call("sampler", 120, [50.0, 1.0, 2.0, 3.0, 8.0, 2.0])}
    speed = measure_speeds(calls, repeats=5, warmup=1, clock=watch)["sampler"]
    assert speed.seconds == (1.0, 2.0, 3.0, 8.0, 2.0)
    assert speed.tokens_per_second == 120 / 2.0
    assert speed.spread == (120 / 3.0, 120 / 2.0)


def test_calls_take_turns_and_ratios_are_taken_within_a_round() -> None:
    watch = Stopwatch()
    calls = {
        "fast": watch.call("fast", 100, [1.0, 10.0, 1.0]),
        "slow": watch.call("slow", 50, [2.0, 20.0, 1.0]),
    }
    speeds = measure_speeds(calls, repeats=3, warmup=0, clock=watch)
    assert watch.order == ["fast", "slow"] * 3
    ratio = speed_ratio(speeds["fast"], speeds["slow"])
    assert (ratio.name, ratio.baseline) == ("fast", "slow")
    assert ratio.ratio == pytest.approx(4.0)
    assert ratio.spread == pytest.approx((3.0, 4.0))


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=9))
def test_quartiles_interpolate(values: list[float]) -> None:
    assert quartiles(values) == pytest.approx(tuple(np.quantile(values, [0.25, 0.75])))


def test_a_real_clock_measures_real_time() -> None:
    import time

    def call() -> Tensor:
        time.sleep(0.02)
        return torch.zeros(100)

    speed = measure_speeds({"sampler": call}, repeats=3, warmup=0)["sampler"]
    assert speed.tokens == 100
    assert min(speed.seconds) >= 0.02
    assert speed.tokens_per_second <= 100 / 0.02


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"warmup": -1}])
def test_nothing_to_time_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="nothing to time"):
        measure_speeds({"sampler": lambda: torch.zeros(1)}, **wrong)
    with pytest.raises(ValueError, match="0 calls"):
        measure_speeds({})


def test_ratios_need_equally_many_rounds() -> None:
    one, two = (Speed(name=str(n), tokens=1, seconds=(1.0,) * n) for n in (1, 2))
    with pytest.raises(ValueError, match="1 rounds and '2' has 2"):
        speed_ratio(one, two)


@pytest.mark.parametrize(("tokens", "duration"), [(0, 1.0), (10, 0.0), (10, -1.0)])
def test_a_call_without_tokens_or_time_has_no_speed(tokens: int, duration: float) -> None:
    watch = Stopwatch()
    with pytest.raises(ValueError, match="'sampler'"):
        measure_speeds({"sampler": watch.call("sampler", tokens, [duration] * 2)}, repeats=1, warmup=1, clock=watch)
    with pytest.raises(ValueError, match="positive seconds"):
        speed_ratio(*(Speed(name="x", tokens=tokens, seconds=(duration,)) for _ in range(2)))
