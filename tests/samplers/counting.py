"""Denoisers that count, the distribution of drawn sequences, and the test that compares distributions."""

from typing import Any

import torch
from scipy import stats
from torch import Tensor

from discrete_distill import exact


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Counting:
    """Passes calls on to a denoiser or a classifier and counts them."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls, self.rows = inner, 0, 0

    def __call__(self, x_t: Tensor, t: Tensor, /, **model_kwargs: Any) -> Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + len(x_t)
        return self.inner(x_t, t, **model_kwargs)


class InTwoParts:
    """The same denoiser with a head of its own: features are the logits."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def features(self, x_t: Tensor, t: Tensor, /, **model_kwargs: Any) -> Tensor:
        return self.inner(x_t, t, **model_kwargs)

    def project(self, features: Tensor, /) -> Tensor:
        return features

    def __call__(self, x_t: Tensor, t: Tensor, /, **model_kwargs: Any) -> Tensor:
        raise AssertionError("the head was to be run on chosen rows alone")


def random_table(vocab_size: int, length: int, times: Tensor, seed: int, mask: int) -> exact.TabularDenoiser:
    """Random logits for every state and step of a grid, with plenty of dependence between positions."""
    table = exact.TabularDenoiser(length, vocab_size, mask, times)
    with torch.no_grad():
        table.logits.normal_(generator=seeded(seed))
    return table


def counts_of(tokens: Tensor, vocab_size: int, mask: int) -> Tensor:
    """How often each sequence was drawn, in the order of a flattened distribution."""
    words = exact.words_of_tokens(tokens, mask)
    places = vocab_size ** torch.arange(tokens.shape[1] - 1, -1, -1)
    return torch.bincount((words * places).sum(1), minlength=vocab_size ** tokens.shape[1])


def chi_square_p(counts: Tensor, distribution: Tensor) -> float:
    """P-value of the counts under the distribution; bins that expect fewer than five are taken together, impossible
    ones are not to be found at all."""
    expected = counts.sum() * distribution.detach().flatten().double()
    possible = expected > 0.0
    assert int(counts[~possible].sum()) == 0
    expected, observed = expected[possible], counts.double()[possible]
    rare = expected < 5.0
    if bool(rare.any()):
        order = expected.argsort(descending=True)
        kept = max(int((~rare).sum()), 1)
        while kept > 1 and 0.0 < float(expected[order[kept:]].sum()) < 5.0:
            kept -= 1
        expected, observed = (
            torch.cat((values[order[:kept]], values[order[kept:]].sum()[None])) for values in (expected, observed)
        )
    assert len(expected) > 2
    assert float(expected.min()) >= 5.0
    return float(stats.chisquare(observed, expected * (observed.sum() / expected.sum())).pvalue)
