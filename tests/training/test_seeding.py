"""Seeds: every number in them counts, and the streams of yesterday's runs are still there today."""

import itertools

import torch

from discrete_distill.training import fold_seed, step_generator


def test_every_number_and_its_place_and_type_count() -> None:
    keys = [(0,), (1,), ("1",), (0, 1), (1, 0), (0, 0, 1), ("teacher", 1), ("student", 1), (12, 3), (1, 23)]
    seeds = [fold_seed(*key) for key in keys]
    assert all(a != b for a, b in itertools.combinations(seeds, 2))


def test_seeds_fit_in_63_bits() -> None:
    seeds = [fold_seed(i) for i in range(1000)]
    assert min(seeds) >= 0
    assert 2**62 < max(seeds) < 2**63


def test_the_streams_are_pinned() -> None:
    assert fold_seed(0, 1, 2) == 722798204616732789


def test_generators_of_a_step_repeat_and_those_of_steps_and_ranks_differ() -> None:
    def draws(*args: int, rank: int = 0) -> torch.Tensor:
        return torch.rand(4, generator=step_generator(*args, rank=rank))

    assert torch.equal(draws(0, 5), draws(0, 5))
    different = [draws(0, 5), draws(0, 6), draws(1, 5), draws(0, 5, rank=1)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(different, 2))
