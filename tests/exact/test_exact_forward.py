import pytest
import torch
from laboratory import SCHEDULES, all_tokens, chain, random_distribution, seeded
from scipy import stats

from discrete_distill import exact
from discrete_distill.process import MaskedDiffusion


def brute_force_distribution(distribution, process, t):
    """Sum over all pairs of a clean and a noisy sequence."""
    length, size = distribution.dim(), distribution.shape[0] + 1
    alpha = float(process.visible_probability(torch.tensor(t, dtype=torch.float64)))
    noisy = all_tokens(size, length)
    words = exact.enumerate_sequences(size - 1, length)
    clean = exact.tokens_of_words(words, process.mask_token_id)
    hidden = noisy[None] == process.mask_token_id
    kept = noisy[None] == clean[:, None]
    per_position = torch.where(hidden, 1.0 - alpha, torch.where(kept, alpha, 0.0)).double()
    return (distribution.flatten()[:, None] * per_position.prod(-1)).sum(0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("mask", [0, 1, 2])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_forward_distribution_equals_brute_force(schedule, mask, t):
    distribution, process = random_distribution(2, 4, 0), MaskedDiffusion(mask, schedule)
    actual = exact.forward_distribution(distribution, process, t)
    torch.testing.assert_close(actual.flatten(), brute_force_distribution(distribution, process, t))
    assert float(actual.sum()) == pytest.approx(1.0, abs=1e-12)


def test_forward_distribution_is_the_distribution_of_corrupt():
    distribution, process, n = random_distribution(2, 3, 1), MaskedDiffusion(1), 20_000
    drawn = torch.multinomial(distribution.flatten(), n, replacement=True, generator=seeded(0))
    x = exact.tokens_of_words(exact.enumerate_sequences(2, 3)[drawn], 1)
    x_t = process.corrupt(x, torch.full((n,), 0.4), generator=seeded(1))
    counts = torch.bincount((x_t * torch.tensor([9, 3, 1])).sum(1), minlength=27)
    assert stats.chisquare(counts, n * exact.forward_distribution(distribution, process, 0.4).flatten()).pvalue > 1e-3


def test_ends_are_the_distribution_and_the_mask():
    distribution, process = random_distribution(3, 3, 0), MaskedDiffusion(3)
    torch.testing.assert_close(exact.forward_distribution(distribution, process, 0.0)[:3, :3, :3], distribution)
    assert float(exact.forward_distribution(distribution, process, torch.tensor(1.0))[3, 3, 3]) == pytest.approx(1.0)


@pytest.mark.parametrize("mask", [0, 2, 3])
def test_distribution_denoiser_is_bayes_rule(mask):
    distribution = random_distribution(3, 3, 2)
    word = exact.tokens_of_words(torch.tensor(1), mask).item()
    logits = exact.DistributionDenoiser(distribution, mask)(torch.tensor([[mask, word, mask]]))
    first = distribution[:, 1].sum(1) / distribution[:, 1].sum()
    words = exact.tokens_of_words(torch.arange(3), mask)
    torch.testing.assert_close(logits[0, 0, words].exp(), first)
    assert float(logits[0, 1, word]) == 0.0
    assert bool((logits[..., mask] == float("-inf")).all())


def test_distribution_denoiser_is_differentiable_in_the_distribution():
    logits = torch.randn(8, dtype=torch.float64, generator=seeded(0), requires_grad=True)
    x_t = all_tokens(3, 3)

    def visible_answers(values):
        answers = exact.DistributionDenoiser(values.softmax(0).reshape(2, 2, 2), 2)(x_t)
        return answers[answers > float("-inf")]

    assert torch.autograd.gradcheck(visible_answers, (logits,))


def test_bad_arguments_are_refused():
    distribution, process = chain(3).distribution(2), MaskedDiffusion(3)
    with pytest.raises(ValueError, match=r"1\.5"):
        exact.forward_distribution(distribution, process, 1.5)
    with pytest.raises(ValueError, match=r"\b7\b"):
        exact.forward_distribution(distribution, MaskedDiffusion(7), 0.5)
    with pytest.raises(ValueError, match=r"\b2\b.*\b3\b"):
        exact.DistributionDenoiser(distribution, 3)(torch.tensor([[0, 1, 2]]))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        exact.DistributionDenoiser(torch.eye(2).double() / 2, 2)(torch.tensor([[0, 1]]))
