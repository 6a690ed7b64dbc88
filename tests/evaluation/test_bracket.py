"""Temperatures are added until the entropy is enclosed for every seed, or the limits are reached."""

import math

import pytest
import torch

from discrete_distill.evaluation import TokenNats, measure_frontier_around

asked: list[tuple[float, int]] = []


class Flat:
    """A judge to whom every token costs one nat."""

    name = "flat"

    def token_nats(self, sequences_BL: torch.Tensor) -> TokenNats:
        return TokenNats(torch.ones(sequences_BL.shape), torch.ones_like(sequences_BL, dtype=torch.bool))


def sample(temperature: float, seed: int) -> torch.Tensor:
    """The first ``10 T`` tokens differ (one fewer for seed 1), the others are zeros: entropy rises with temperature."""
    asked.append((temperature, seed))
    different = round(10 * temperature) - seed
    row = torch.zeros(32, dtype=torch.long)
    row[:different] = torch.arange(1, different + 1)
    return row.repeat(2, 1)


def around(target: float, **settings):
    asked.clear()
    entropy = float(measure_frontier_around(0.0, sample, Flat(), method="m", seeds=(0,), temperatures=(target,),
                                            limits=(target, target)).points[0].entropy)  # fmt: skip
    asked.clear()
    return entropy, measure_frontier_around(entropy, sample, Flat(), method="m", seeds=(0, 1), **settings)


def test_nothing_is_added_where_the_entropy_is_inside() -> None:
    entropy, frontier = around(0.85, temperatures=(0.7, 1.1))
    assert [p.temperature for p in frontier.means()] == [0.7, 1.1]
    assert frontier.read(entropy).within_range


@pytest.mark.parametrize(
    ("target", "expected"), [(1.3, [0.9, 1.0, 1.1, 1.2, 1.3, 1.4]), (0.6, [0.6, 0.7, 0.8, 0.9, 1.0])]
)
def test_it_grows_upwards_or_downwards_until_both_seeds_are_inside(target, expected) -> None:
    entropy, frontier = around(target)
    assert [p.temperature for p in frontier.means()] == expected
    assert frontier.read(entropy).within_range
    assert len(asked) == len(set(asked)) == 2 * len(expected)


def test_it_stops_at_the_limits() -> None:
    entropy, frontier = around(1.3, limits=(0.8, 1.2))
    assert max(p.temperature for p in frontier.points) == 1.2
    assert not frontier.read(entropy).within_range
    with pytest.raises(ValueError, match="spacing must be positive"):
        around(1.0, spacing=0.0)


@pytest.mark.parametrize(
    "wrong", [{"entropy": math.nan}, {"spacing": math.inf}, {"limits": (1.0, 0.5)}, {"limits": (0.0, 1.0)}]
)
def test_what_cannot_be_enclosed_is_refused(wrong: dict) -> None:
    settings = {"entropy": 1.0, **wrong}
    with pytest.raises(ValueError, match=r"finite|limits"):
        measure_frontier_around(
            settings.pop("entropy"), lambda t, s: pytest.fail("drawn"), None, method="m", seeds=(0,), **settings
        )
