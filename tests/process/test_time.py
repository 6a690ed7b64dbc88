"""Time distributions: densities that integrate to one, samples that follow them, one draw in every cell."""

import itertools

import numpy as np
import pytest
import torch
from scipy.integrate import cumulative_trapezoid, quad
from scipy.stats import kstest
from torch import Generator

from discrete_distill.process import BetaTime, StratifiedTime, TimeDistribution, UniformTime

LAWS = [
    UniformTime(),
    UniformTime(low=0.2, high=0.7),
    StratifiedTime(low=1e-3),
    BetaTime(),
    BetaTime(a=1.0, b=1.0),
    BetaTime(low=0.02, high=0.98, a=3.0, b=1.5),
]
every_distribution = pytest.mark.parametrize("distribution", LAWS, ids=repr)


class LastDraw(UniformTime):
    """A uniform distribution whose draws all fall on the upper end, as rounding makes one in a few million do."""

    def _unit_sample(self, n: int, device: torch.device, generator: Generator | None) -> torch.Tensor:
        return torch.ones(n)


@every_distribution
def test_the_density_integrates_to_one(distribution: TimeDistribution) -> None:
    mass, _ = quad(
        lambda t: distribution.density(torch.tensor(t, dtype=torch.float64)).item(), distribution.low, distribution.high
    )
    assert mass == pytest.approx(1.0, abs=1e-6)


@every_distribution
def test_the_density_is_zero_outside_of_the_distribution(distribution: TimeDistribution) -> None:
    outside = torch.tensor([distribution.low - 0.01, distribution.high + 0.01])
    assert distribution.density(outside).tolist() == [0.0, 0.0]


@every_distribution
def test_samples_follow_the_density(distribution: TimeDistribution, seeded) -> None:  # type: ignore[no-untyped-def]
    t = distribution.sample(5000, generator=seeded(0)).t.double().numpy()
    grid = np.linspace(distribution.low, distribution.high, 4001)
    density = distribution.density(torch.from_numpy(grid)).numpy()
    distribution = cumulative_trapezoid(density, grid, initial=0.0)
    assert kstest(t, lambda q: np.interp(q, grid, distribution)).pvalue > 1e-3


@every_distribution
def test_a_sample_comes_with_its_density(distribution: TimeDistribution, seeded) -> None:  # type: ignore[no-untyped-def]
    t, density = distribution.sample(1000, generator=seeded(1))
    assert t.shape == density.shape == (1000,)
    assert t.dtype == torch.float32
    assert distribution.low <= t.min()
    assert t.max() <= torch.tensor(distribution.high)
    torch.testing.assert_close(density, distribution.density(t), rtol=1e-4, atol=1e-5)


def test_importance_weights_recover_an_integral(seeded) -> None:  # type: ignore[no-untyped-def]
    t, density = BetaTime(a=1.5, b=2.5).sample(20_000, generator=seeded(2))
    values = (t * (1.0 - t) * t.exp() / density).double()
    exact, _ = quad(lambda u: u * (1.0 - u) * np.exp(u), 0.0, 1.0)
    standard_error = values.std().item() / len(values) ** 0.5
    assert abs(values.mean().item() - exact) < 5 * standard_error
    assert standard_error < 0.01 * exact


@pytest.mark.parametrize("n", [1, 7, 64])
def test_stratified_times_fall_one_in_each_cell(n: int, seeded) -> None:  # type: ignore[no-untyped-def]
    t = StratifiedTime(low=0.5).sample(n, generator=seeded(3)).t
    cells = ((t - 0.5) / 0.5 * n).floor().sort().values
    assert cells.tolist() == list(range(n))


def test_each_single_stratified_time_is_uniform(seeded) -> None:  # type: ignore[no-untyped-def]
    generator = seeded(4)
    first = [StratifiedTime().sample(4, generator=generator).t[0].item() for _ in range(3000)]
    assert kstest(first, "uniform").pvalue > 1e-3


def test_a_draw_on_the_upper_end_keeps_its_density() -> None:
    ends = [i / 20 for i in range(21)]
    for low, high in itertools.combinations(ends, 2):
        distribution = LastDraw(low=low, high=high)
        t, density = distribution.sample(1)
        assert density.item() == pytest.approx(1.0 / (high - low))
        assert distribution.density(t).item() == pytest.approx(1.0 / (high - low))


@every_distribution
def test_the_generator_alone_decides(distribution: TimeDistribution, seeded) -> None:  # type: ignore[no-untyped-def]
    before = torch.get_rng_state()
    first, again, other = (distribution.sample(16, generator=seeded(seed)).t for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.0), (0.5, 0.5), (0.9, 0.1), (0.0, 1.1)])
def test_an_empty_or_outlying_range_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match=f"{low}.*{high}"):
        UniformTime(low=low, high=high)


def test_shapes_of_a_beta_distribution_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"\b0\.0\b"):
        BetaTime(a=0.0)
    with pytest.raises(ValueError, match=r"0\.7.*0\.2"):
        BetaTime(low=0.7, high=0.2)


def test_no_times_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\b0\b"):
        UniformTime().sample(0)
