import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laboratory import all_tokens, chain, seeded

from discrete_distill import exact
from discrete_distill.exact.messages import evidence_of_tokens
from discrete_distill.exact.pairs import pair_marginals
from discrete_distill.process import MaskedDiffusion

TIME = torch.zeros(1)


def hidden_half(words, mask, seed=0):
    hidden = torch.rand(words.shape, generator=seeded(seed)) < 0.5
    return torch.where(hidden, mask, exact.tokens_of_words(words, mask))


@pytest.mark.parametrize("mask", range(4))
def test_equals_enumeration_on_every_state(mask):
    markov = chain(3, seed=1)
    states = all_tokens(4, 4)
    expected = exact.DistributionDenoiser(markov.distribution(4), mask)(states)
    torch.testing.assert_close(markov.denoiser(mask)(states, TIME), expected, atol=1e-10, rtol=0)


def test_equals_the_marginals_of_torch_struct():
    markov, mask, length = chain(5, seed=2), 5, 9
    x_t = hidden_half(markov.sample(16, length, generator=seeded(0)), mask)
    pairs = pair_marginals(markov.initial, markov.transition, evidence_of_tokens(x_t, mask, 5))
    expected = torch.cat([pairs[:, :1].sum(3), pairs.sum(2)], dim=1)
    actual = markov.denoiser(mask)(x_t, TIME).exp()[..., :5]
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(1, 12), st.integers(0, 10_000), st.data())
def test_one_token_at_a_time_in_any_order_gives_the_distribution(vocab_size, length, seed, data):
    markov, mask = chain(vocab_size, seed), data.draw(st.integers(0, vocab_size))
    words = markov.sample(1, length, generator=seeded(seed))
    tokens = exact.tokens_of_words(words, mask)
    x_t = torch.full_like(tokens, mask)
    total = 0.0
    for i in data.draw(st.permutations(range(length))):
        total += float(markov.denoiser(mask)(x_t, TIME)[0, i, tokens[0, i]])
        x_t[0, i] = tokens[0, i]
    assert total == pytest.approx(float(markov.log_prob(words)), abs=1e-9)


def test_a_single_hidden_word_of_a_long_sequence_sees_its_two_neighbours():
    markov, mask, length = chain(64, seed=3), 64, 256
    x_t = markov.sample(4, length, generator=seeded(1))
    before, after = x_t[:, 99].clone(), x_t[:, 101].clone()
    x_t[:, 100] = mask
    bridge = markov.transition[before] * markov.transition[:, after].T
    expected = bridge / bridge.sum(1, keepdim=True)
    actual = markov.denoiser(mask)(x_t, TIME)[:, 100, :64].exp()
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-9)


def test_logits_of_long_sequences_are_normalised_and_exclude_the_mask():
    markov, mask = chain(64, seed=3), 17
    x_t = hidden_half(markov.sample(8, 256, generator=seeded(1)), mask)
    with torch.inference_mode():
        logits = markov.denoiser(mask)(x_t, TIME)
    torch.testing.assert_close(logits.logsumexp(-1), torch.zeros(8, 256, dtype=torch.float64), atol=1e-10, rtol=0)
    assert bool((logits[..., mask] == float("-inf")).all())
    process = MaskedDiffusion(mask)
    torch.testing.assert_close(process.log_probs(logits, x_t), logits, atol=1e-10, rtol=0)


FORCED = exact.MarkovChain(torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_certainty_is_exact():
    logits = FORCED.denoiser(2)(torch.tensor([[2, 2, 0, 2]]), TIME)
    assert logits[0].exp().tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]]


def test_impossible_evidence_raises_or_is_answered_uniformly():
    x_t = torch.tensor([[0, 2, 2], [2, 0, 2]])
    with pytest.raises(ValueError, match=r"\[2, 0, 2\].*impossible"):
        FORCED.denoiser(2)(x_t, TIME)
    logits = FORCED.denoiser(2, impossible="uniform")(x_t, TIME)
    assert logits[1].exp().tolist() == [[0.5, 0.5, 0], [1, 0, 0], [0.5, 0.5, 0]]
    assert logits[0].exp().tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"\b3\b"):
        FORCED.denoiser(3)
    with pytest.raises(ValueError, match="'ignore'"):
        FORCED.denoiser(2, impossible="ignore")
    with pytest.raises(ValueError, match=r"\b3\b"):
        FORCED.denoiser(2)(torch.tensor([[0, 3]]), TIME)
