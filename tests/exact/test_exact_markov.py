import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laboratory import all_tokens, chain, seeded
from scipy import stats

from discrete_distill import exact

sizes = st.tuples(st.integers(2, 4), st.integers(1, 5), st.integers(0, 1000))


@settings(max_examples=30, deadline=None)
@given(sizes)
def test_distribution_is_the_enumerated_log_prob_and_sums_to_one(size):
    vocab_size, length, seed = size
    distribution = chain(vocab_size, seed).distribution(length)
    sequences = exact.enumerate_sequences(vocab_size, length)
    torch.testing.assert_close(distribution.flatten(), chain(vocab_size, seed).log_prob(sequences).exp())
    assert float(distribution.sum()) == pytest.approx(1.0, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(sizes)
def test_closed_forms_equal_enumeration(size):
    vocab_size, length, seed = size
    markov = chain(vocab_size, seed)
    distribution = markov.distribution(length)
    assert markov.entropy(length) == pytest.approx(float(exact.entropy(distribution)), abs=1e-10)
    assert markov.total_correlation(length) == pytest.approx(float(exact.total_correlation(distribution)), abs=1e-10)
    torch.testing.assert_close(markov.marginals(length), exact.position_marginals(distribution))


def test_window_distribution_is_a_marginal_of_the_distribution():
    markov = chain(3)
    torch.testing.assert_close(markov.window_distribution(2, 3), markov.distribution(6).sum((0, 1, 5)))


@pytest.mark.parametrize("mask", range(4))
def test_evidence_is_the_sum_over_what_is_hidden(mask):
    markov = chain(3, seed=1)
    expected = exact.visible_marginals(markov.distribution(4), mask).flatten()
    torch.testing.assert_close(markov.log_evidence(all_tokens(4, 4), mask).exp(), expected)


def test_samples_have_the_distribution():
    markov = chain(3, seed=2)
    n = 20_000
    samples = markov.sample(n, 4, generator=seeded(0))
    counts = torch.zeros(3, 3, 3, 3, dtype=torch.float64)
    counts.index_put_(tuple(samples.T), torch.ones(n, dtype=torch.float64), accumulate=True)
    assert stats.chisquare(counts.flatten(), n * markov.distribution(4).flatten()).pvalue > 1e-3
    wrong = chain(3, seed=3).distribution(4).flatten()
    assert stats.chisquare(counts.flatten(), n * wrong).pvalue < 1e-6


def test_long_samples_of_a_large_vocabulary_have_the_transitions():
    markov = chain(64, seed=1, concentration=2.0)
    samples = markov.sample(200, 256, generator=seeded(0))
    counts = torch.zeros(64, 64, dtype=torch.float64)
    pairs = samples[:, :-1].flatten(), samples[:, 1:].flatten()
    counts.index_put_(pairs, torch.ones(len(pairs[0]), dtype=torch.float64), accumulate=True)
    expected = counts.sum(1, keepdim=True) * markov.transition
    large = expected > 5
    statistic = float((((counts - expected) ** 2 / expected)[large]).sum())
    assert stats.chi2(int(large.sum())).sf(statistic) > 1e-3


def test_sampling_is_reproducible_and_leaves_global_randomness_alone():
    state = torch.get_rng_state()
    first, second = (chain(4).sample(5, 7, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, chain(4).sample(5, 7, generator=seeded(4)))
    assert torch.equal(state, torch.get_rng_state())


def test_what_cannot_happen_is_never_drawn():
    markov = exact.MarkovChain(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([[0, 1, 0], [0.5, 0, 0.5], [1, 0, 0.0]]))
    samples = markov.sample(500, 12, generator=seeded(0))
    assert bool(markov.log_prob(samples).isfinite().all())
    assert float(markov.log_prob(torch.tensor([[1, 1]]))) == float("-inf")


@pytest.mark.parametrize("mask", [0, 3])
def test_completions_have_the_posterior(mask):
    markov = chain(3, seed=4)
    n = 20_000
    word = exact.tokens_of_words(torch.tensor(2), mask).item()
    x_t = torch.tensor([[mask, word, mask, mask]]).expand(n, -1)
    words = exact.words_of_tokens(markov.complete(x_t, mask, generator=seeded(0)), mask)
    assert bool((words[:, 1] == 2).all())
    counts = torch.bincount(words[:, 0] * 9 + words[:, 2] * 3 + words[:, 3], minlength=27)
    posterior = markov.distribution(4)[:, 2].flatten()
    assert stats.chisquare(counts, n * posterior / posterior.sum()).pvalue > 1e-3


def test_completing_impossible_evidence_is_refused():
    markov = exact.MarkovChain(torch.tensor([0.5, 0.5]), torch.eye(2))
    with pytest.raises(ValueError, match=r"\[0, 2, 1\]"):
        markov.complete(torch.tensor([[0, 2, 0], [0, 2, 1]]), 2)


GOOD = torch.tensor([0.5, 0.5])


@pytest.mark.parametrize(
    ("initial", "transition", "message"),
    [
        (GOOD, torch.tensor([[0.5, 0.5], [0.5, 0.4]]), r"transition.*0\.9"),
        (torch.tensor([0.75, 0.5]), torch.eye(2), r"initial.*1\.25"),
        (torch.tensor([1.5, -0.5]), torch.eye(2), r"initial.*-0\.5"),
        (GOOD, torch.full((2, 2), float("nan")), "transition.*nan"),
        (GOOD, torch.eye(3), r"\[2\].*\[3, 3\]"),
    ],
)
def test_tables_that_are_no_chain_are_refused(initial, transition, message):
    with pytest.raises(ValueError, match=message):
        exact.MarkovChain(initial, transition)


def test_bad_arguments_are_refused():
    markov = chain(3)
    with pytest.raises(ValueError, match=r"words.*\b3\b"):
        markov.log_prob(torch.tensor([[0, 3]]))
    with pytest.raises(ValueError, match=r"\[2\]"):
        markov.log_prob(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"n must be 1 or more, got 0"):
        markov.sample(0, 4)
    with pytest.raises(ValueError, match=r"length must be 1 or more, got 0"):
        markov.sample(4, 0)
    with pytest.raises(ValueError, match="-1"):
        markov.window_distribution(-1, 2)
    with pytest.raises(ValueError, match=r"3\^40.*MarkovChain.sample"):
        markov.distribution(40)


def by_enumeration(distribution, x_t, mask):
    """``sum_i H(x_i | visible) - H(x | visible)`` of one state, from the whole distribution."""
    for axis, token in enumerate(x_t.tolist()):
        if token != mask:
            word = exact.words_of_tokens(torch.tensor([token]), mask)
            only = torch.zeros(distribution.shape[0], dtype=torch.float64).index_fill(0, word, 1.0)
            distribution = distribution * only.view([-1 if i == axis else 1 for i in range(distribution.dim())])
    return float(exact.total_correlation(distribution / distribution.sum()))


@pytest.mark.parametrize("mask", [0, 2, 3])
@pytest.mark.parametrize("zeros", [False, True])
def test_conditional_total_correlation_equals_enumeration_on_every_possible_state(mask, zeros):
    markov, length = chain(3, seed=4), 4
    if zeros:
        transition = markov.transition * torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 1]])
        markov = exact.MarkovChain(torch.tensor([0.7, 0.3, 0.0]), transition / transition.sum(1, keepdim=True))
    states = all_tokens(4, length)
    possible = markov.log_evidence(states, mask) > float("-inf")
    assert bool(possible.all()) == (not zeros)
    values = [by_enumeration(markov.distribution(length), x, mask) for x in states[possible]]
    expected = torch.tensor(values, dtype=torch.float64)
    with torch.inference_mode():
        actual = markov.conditional_total_correlation(states[possible], mask)
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)
    assert float(actual.max()) > 0.01


@pytest.mark.parametrize("length", [1, 2, 3, 16])
def test_with_everything_masked_it_is_the_total_correlation_at_any_length(length):
    markov = chain(8, seed=5)
    value = markov.conditional_total_correlation(torch.full((2, length), 8), 8)
    torch.testing.assert_close(value, torch.full_like(value, markov.total_correlation(length)), atol=1e-10, rtol=0)


def test_a_state_that_cannot_be_has_no_total_correlation():
    markov = exact.MarkovChain(torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    with pytest.raises(ValueError, match=r"\[0, 0\]"):
        markov.conditional_total_correlation(torch.tensor([[0, 1], [0, 0]]), 2)
