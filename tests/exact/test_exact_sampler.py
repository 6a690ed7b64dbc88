from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laboratory import SCHEDULES, RandomDenoiser, chain, seeded, transition_matrix
from scipy import stats
from torch import nn

from discrete_distill import exact
from discrete_distill.exact.enumeration import with_mask_last
from discrete_distill.process import MaskedDiffusion

TIMES = [1.0, 0.7, 0.3, 0.0]


def product_of_matrices(denoiser, process, times, vocab_size, length):
    """Distribution over all states, from full transition matrices between them."""
    size = vocab_size + 1
    distribution = torch.zeros([size] * length, dtype=torch.float64)
    distribution[(process.mask_token_id,) * length] = 1.0
    distribution = distribution.flatten()
    for t, s in pairwise(torch.tensor(times, dtype=torch.float64)):
        distribution = distribution @ transition_matrix(denoiser, process, t, s, size, length)
    return distribution.reshape([size] * length)


def simulate(denoiser, process, times, n, length, generator):
    """Plain ancestral sampling: an unmasking draw for each masked token, then its word."""
    x_t = torch.full((n, length), process.mask_token_id)
    for t, s in pairwise(torch.tensor(times)):
        probs = denoiser(x_t, t.expand(n), s=s.expand(n)).index_fill(-1, torch.tensor(process.mask_token_id), -1e9)
        words = torch.multinomial(probs.softmax(-1).flatten(0, 1), 1, generator=generator).view(n, length)
        unmasked = torch.rand(n, length, generator=generator) < process.unmask_probability(t, s)
        x_t = torch.where(process.is_masked(x_t) & unmasked, words, x_t)
    return x_t


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("vocab_size", "length", "mask"), [(2, 3, 2), (2, 3, 0), (3, 2, 1), (1, 3, 1), (4, 1, 2)])
def test_equals_the_product_of_full_transition_matrices(schedule, vocab_size, length, mask):
    process, denoiser = MaskedDiffusion(mask, schedule), RandomDenoiser(vocab_size, length, 0)
    expected = product_of_matrices(denoiser, process, TIMES, vocab_size, length)
    actual = exact.sampler_distribution(denoiser, process, TIMES, length, vocab_size)
    words = with_mask_last(expected, mask)[(slice(0, vocab_size),) * length]
    torch.testing.assert_close(actual, words, atol=1e-12, rtol=0)
    partial = exact.sampler_path_distributions(denoiser, process, TIMES[:-1], length, vocab_size)
    expected = product_of_matrices(denoiser, process, TIMES[:-1], vocab_size, length)
    torch.testing.assert_close(partial[-1], expected, atol=1e-12, rtol=0)


def test_equals_simulation():
    process, denoiser, n = MaskedDiffusion(1), RandomDenoiser(2, 3, 5), 20_000
    tokens = simulate(denoiser, process, TIMES, n, 3, seeded(0))
    words = exact.words_of_tokens(tokens, 1)
    counts = torch.bincount((words * torch.tensor([4, 2, 1])).sum(1), minlength=8)
    distribution = exact.sampler_distribution(denoiser, process, TIMES, 3, 2).flatten()
    assert stats.chisquare(counts, n * distribution).pvalue > 1e-3


inner_times = st.lists(st.floats(0.01, 0.99), max_size=3, unique=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 1000), inner_times, st.sampled_from(SCHEDULES))
def test_distributions_sum_to_one_and_unmasking_ignores_the_denoiser(vocab_size, length, seed, inner, schedule):
    process, times = MaskedDiffusion(vocab_size, schedule), [1.0, *sorted(inner, reverse=True), 0.0]
    denoiser = RandomDenoiser(vocab_size, length, seed)
    distributions = exact.sampler_path_distributions(denoiser, process, times, length, vocab_size)
    torch.testing.assert_close(
        exact.sampler_distribution(denoiser, process, times, length, vocab_size),
        distributions[-1][(slice(0, vocab_size),) * length],
    )
    for t, distribution in zip(times, distributions, strict=True):
        assert float(distribution.sum()) == pytest.approx(1.0, abs=1e-12)
        alpha = float(process.visible_probability(torch.tensor(t, dtype=torch.float64)))
        hidden = exact.position_marginals(distribution)[:, process.mask_token_id]
        assert hidden.tolist() == pytest.approx([1.0 - alpha] * length, abs=1e-12)


def test_one_perfect_step_is_the_product_of_the_marginals():
    markov = chain(3, seed=1)
    distribution = exact.sampler_distribution(markov.denoiser(3), MaskedDiffusion(3), [1.0, 0.0], 3, 3)
    a, b, c = markov.marginals(3)
    torch.testing.assert_close(distribution, a[:, None, None] * b[None, :, None] * c)
    assert float(exact.kl(markov.distribution(3), distribution)) == pytest.approx(
        markov.total_correlation(3), abs=1e-10
    )


def test_many_perfect_steps_approach_the_chain_at_rate_one_over_steps():
    markov, process = chain(3, seed=1), MaskedDiffusion(3)
    target = markov.distribution(4)
    distributions = [
        exact.sampler_distribution(markov.denoiser(3), process, exact.uniform_times(n), 4, 3, time_dependent=False)
        for n in (1, 2, 4, 8, 16, 64, 128)
    ]
    distances = torch.stack([exact.total_variation(distribution, target) for distribution in distributions])
    assert bool((distances.diff() < 0).all())
    assert float(distances[-1] / distances[-2]) == pytest.approx(0.5, abs=0.05)
    extrapolated = 2 * distributions[-1] - distributions[-2]
    assert float(exact.total_variation(extrapolated, target)) < 0.05 * float(distances[-1])


def test_the_distribution_does_not_depend_on_the_place_of_the_mask():
    markov = chain(3, seed=2)
    distributions = [exact.sampler_distribution(markov.denoiser(m), MaskedDiffusion(m), TIMES, 4, 3) for m in range(4)]
    for distribution in distributions[1:]:
        torch.testing.assert_close(distribution, distributions[0])


def test_forbidden_states_are_not_asked_about():
    forced = exact.MarkovChain(torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    distribution = exact.sampler_distribution(forced.denoiser(2), MaskedDiffusion(2), TIMES, 4, 2)
    torch.testing.assert_close(distribution, forced.distribution(4))


def test_only_reached_states_are_asked_about_in_batches():
    denoiser = RandomDenoiser(2, 3, 0)
    exact.sampler_distribution(denoiser, MaskedDiffusion(2), [1.0, 0.5, 0.0], 3, 2, batch_size=7)
    assert denoiser.calls[0].tolist() == [[2, 2, 2]]
    later = torch.cat(denoiser.calls[1:])
    assert max(len(call) for call in denoiser.calls) == 7
    assert len(later.unique(dim=0)) == len(later) == 3**3 - 2**3


def test_a_timeless_denoiser_is_asked_once():
    class Counting:
        asked = 0
        inner = staticmethod(chain(2).denoiser(2))

        def __call__(self, x_t, t):
            self.asked += len(x_t)
            return self.inner(x_t, t)

    distributions, asked = [], []
    for time_dependent in (True, False):
        denoiser = Counting()
        distributions.append(
            exact.sampler_distribution(
                denoiser, MaskedDiffusion(2), exact.uniform_times(6), 3, 2, time_dependent=time_dependent
            )
        )
        asked.append(denoiser.asked)
    torch.testing.assert_close(distributions[0], distributions[1])
    assert asked == [1 + 5 * (3**3 - 2**3), 1 + (3**3 - 2**3)]


class TinyNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(3, 4, dtype=torch.float64)
        self.head = nn.Linear(12, 9, dtype=torch.float64)

    def forward(self, x_t, t):
        hidden = torch.tanh(self.embed(x_t)).flatten(1) * (1 + t.double()[:, None])
        return self.head(hidden).view(-1, 3, 3)


def test_gradient_in_the_parameters_of_a_network_is_that_of_finite_differences():
    torch.manual_seed(0)
    network, target = TinyNetwork(), chain(2).distribution(3)

    def objective(weight):
        logits = lambda x, t: torch.func.functional_call(network, {"head.weight": weight}, (x, t))  # noqa: E731
        return exact.kl(exact.sampler_distribution(logits, MaskedDiffusion(2), TIMES, 3, 2), target)

    assert torch.autograd.gradcheck(objective, (network.head.weight.detach().requires_grad_(),))


def test_the_distribution_of_five_words_and_length_six_is_a_distribution():
    markov, length = exact.small_chain()
    distribution = exact.sampler_distribution(
        markov.denoiser(5), MaskedDiffusion(5), exact.uniform_times(4), length, markov.vocab_size
    )
    assert distribution.shape == (5,) * 6
    assert float(distribution.sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.9, 0.0], r"0\.9"),
        ([1.0, 0.5, 0.5, 0.0], r"0\.5, 0\.5"),
        ([1.0, -0.1], r"-0\.1"),
        ([1.0, 0.1], r"0\.1"),
        ([1.0], r"\[1\.0\]"),
    ],
)
def test_bad_times_are_refused(times, message):
    with pytest.raises(ValueError, match=message):
        exact.sampler_distribution(chain(2).denoiser(2), MaskedDiffusion(2), times, 2, 2)


def test_bad_arguments_are_refused():
    denoiser, process = chain(2).denoiser(2), MaskedDiffusion(2)
    with pytest.raises(ValueError, match=r"7\^20.*MarkovChain\.sample"):
        exact.sampler_distribution(denoiser, process, TIMES, 20, 3)
    with pytest.raises(ValueError, match=r"\b2\b"):
        exact.sampler_distribution(denoiser, process, TIMES, 2, 1)
    with pytest.raises(ValueError, match=r"\[1, 3, 3\]"):
        exact.sampler_distribution(denoiser, process, TIMES, 3, 3)
    with pytest.raises(ValueError, match=r"(?i)\bnan\b"):
        exact.sampler_distribution(lambda x, t: denoiser(x, t) * float("nan"), process, TIMES, 3, 2)
    with pytest.raises(ValueError, match=r"batch_size.*\b0\b"):
        exact.sampler_distribution(denoiser, process, TIMES, 3, 2, batch_size=0)
    with pytest.raises(ValueError, match=r"num_steps.*\b0\b"):
        exact.uniform_times(0)
