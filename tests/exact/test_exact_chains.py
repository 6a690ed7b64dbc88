import pytest
import torch
from laboratory import seeded

from discrete_distill import exact


def test_a_seed_is_a_distribution():
    first, second, other = (exact.random_chain(4, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.transition, second.transition)
    assert torch.equal(first.initial, second.initial)
    assert not torch.equal(first.transition, other.transition)


def test_concentration_sets_the_entropy_rate():
    rates = [sum(exact.random_chain(6, seeded(seed), c).entropy(20) for seed in range(20)) for c in (0.1, 0.5, 5.0)]
    assert rates[0] < 0.75 * rates[1] < 0.75 * 0.75 * rates[2]


def test_the_standard_distributions_are_what_they_say():
    small, large = exact.small_chain(), exact.large_chain()
    assert (small.chain.vocab_size, small.length) == (5, 6)
    assert (large.chain.vocab_size, large.length) == (8, 16)
    assert float(small.chain.distribution(small.length).min()) > 0.0
    assert bool((large.chain.transition > 0).all())
    for chain, length in (small, large):
        uniform = length * torch.tensor(float(chain.vocab_size)).log()
        assert 0.3 < chain.entropy(length) / float(uniform) < 0.7
        assert chain.total_correlation(length) > 1.0
    with pytest.raises(ValueError, match=r"8\^16"):
        large.chain.distribution(large.length)


@pytest.mark.parametrize(
    ("vocab_size", "concentration", "value"), [(0, 1.0, r"vocab_size.*\b0\b"), (3, 0.0, r"concentration.*0\.0")]
)
def test_bad_arguments_are_refused(vocab_size, concentration, value):
    with pytest.raises(ValueError, match=value):
        exact.random_chain(vocab_size, seeded(0), concentration)
