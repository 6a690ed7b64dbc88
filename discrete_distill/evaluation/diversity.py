"""Diversity: entropies, distinct and repeated n-grams, and overlap between samples.

Perplexity alone is best for a sampler that repeats one text; these figures detect it. Figures over a
set of samples depend on the size of the set: compare them at equal N and L. Shape suffixes: N samples, L
length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_count
from .checks import check_token_ids


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Diversity of a set of samples. All but the entropies are fractions in ``[0, 1]``.

    Attributes:
        num_samples: samples, N.
        length: tokens of each, L.
        entropy: mean of `sample_entropy`, in nats: the figure that papers report.
        corpus_entropy: `corpus_entropy`, in nats.
        distinct: `distinct_n` by n.
        repetition: mean of `repetition_n` by n.
        overlap: mean of `overlap_n` by n.

    Examples:
        >>> diversity = measure_diversity(torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0]]))
        >>> round(diversity.entropy, 4), diversity.distinct[1]  # Mean of log(4) and 0; 4 words of 8 tokens.
        (0.6931, 0.5)
    """

    num_samples: int
    length: int
    entropy: float
    corpus_entropy: float
    distinct: dict[int, float]
    repetition: dict[int, float]
    overlap: dict[int, float]


def measure_diversity(sequences_NL: Tensor, *, orders: Sequence[int] = (1, 2, 3, 4)) -> Diversity:
    """Measure all figures of this module.

    Args:
        sequences_NL: token ids, int64 ``[N, L]``.
        orders: the n of the n-grams; those above L are left out.

    Raises:
        ValueError: for samples of another shape, none at all, or an order below 1.

    Examples:
        >>> measure_diversity(torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]]), orders=(1, 2)).overlap
        {1: 1.0, 2: 1.0}
    """
    check_token_ids(sequences_NL)
    num_samples, length = sequences_NL.shape
    fitting = [n for n in orders if n <= length]
    return Diversity(
        num_samples=num_samples,
        length=length,
        entropy=float(sample_entropy(sequences_NL).mean()),
        corpus_entropy=corpus_entropy(sequences_NL),
        distinct={n: distinct_n(sequences_NL, n) for n in fitting},
        repetition={n: float(repetition_n(sequences_NL, n).mean()) for n in fitting},
        overlap={n: float(overlap_n(sequences_NL, n).mean()) for n in fitting},
    )


def sample_entropy(sequences_NL: Tensor) -> Tensor:
    """Compute the entropy of each sample: ``H_i = -sum_v c_iv / L * log(c_iv / L)``, ``c_iv`` the count of token v.

    The definition of DiDi-Instruct (arXiv 2509.25035) and of its predecessors; at most ``log L``. Its mean over samples
    does not show samples that equal one another: see `corpus_entropy`.

    Args:
        sequences_NL: token ids, int64 ``[N, L]``.

    Returns:
        Nats, fp64 ``[N]``.

    Examples:
        >>> sample_entropy(torch.tensor([[0, 0, 1, 1], [0, 1, 2, 3]]))  # log(2) and log(4)
        tensor([0.6931, 1.3863], dtype=torch.float64)
    """
    check_token_ids(sequences_NL)
    counts_NL = _counts_in_rows(sequences_NL).double()
    probs_NL = counts_NL / sequences_NL.shape[1]
    return -torch.special.xlogy(probs_NL, probs_NL).sum(dim=1)


def corpus_entropy(sequences_NL: Tensor) -> float:
    """Unigram entropy, in nats, of all tokens of all samples together; falls when samples grow alike.

    Examples:
        >>> round(corpus_entropy(torch.tensor([[0, 0], [1, 1]])), 4)  # log(2), though each sample has an entropy of 0.
        0.6931
    """
    check_token_ids(sequences_NL)
    _, counts = torch.unique(sequences_NL, return_counts=True)
    probs = counts.double() / sequences_NL.numel()
    return float(-torch.special.xlogy(probs, probs).sum())


def distinct_n(sequences_NL: Tensor, n: int) -> float:
    """Count the different n-grams of the whole set, as a fraction of all its n-grams. Li et al., arXiv 1510.03055.

    Raises:
        ValueError: if ``n`` is below 1 or above the length.

    Examples:
        >>> distinct_n(torch.tensor([[0, 1, 0, 1]]), 2)  # Two different ones among (0, 1), (1, 0), (0, 1).
        0.666...
    """
    grams_NG = ngram_ids(sequences_NL, n)
    return torch.unique(grams_NG).numel() / grams_NG.numel()


def repetition_n(sequences_NL: Tensor, n: int) -> Tensor:
    """Compute ``1 - different n-grams / n-grams`` of each sample, "seq-rep-n" of arXiv 1908.04319.

    Returns:
        fp64 ``[N]``.

    Raises:
        ValueError: if ``n`` is below 1 or above the length.

    Examples:
        >>> repetition_n(torch.tensor([[0, 1, 0, 1, 0]]), 2).tolist()  # Four bigrams, two different ones.
        [0.5]
    """
    grams_NG = ngram_ids(sequences_NL, n)
    different = (_counts_in_rows(grams_NG) > 0).sum(dim=1)
    return 1.0 - different.double() / grams_NG.shape[1]


def overlap_n(sequences_NL: Tensor, n: int) -> Tensor:
    """Compute the fraction of the n-grams of each sample that occur in some *other* sample of the set.

    Self-BLEU (arXiv 1802.01886) for one n, without its clipping and its quadratic cost: 1 when samples are
    copies of one another. Grows with N.

    Returns:
        fp64 ``[N]``.

    Raises:
        ValueError: if ``n`` is below 1 or above the length.

    Examples:
        >>> overlap_n(torch.tensor([[0, 1, 2], [0, 1, 3]]), 2).tolist()  # Of two bigrams each, (0, 1) is in both.
        [0.5, 0.5]
    """
    grams_NG = ngram_ids(sequences_NL, n)
    num_samples, num_grams = grams_NG.shape
    owner = torch.arange(num_samples, device=grams_NG.device).repeat_interleave(num_grams)
    pairs = torch.unique(grams_NG.flatten() * num_samples + owner)
    num_owners = torch.bincount(pairs // num_samples)
    return (num_owners[grams_NG] > 1).double().mean(dim=1)


def _counts_in_rows(ids_NL: Tensor) -> Tensor:
    """Counts of the different ids of each row, int64 ``[N, L]``, zeros at the end of a row."""
    sorted_NL = ids_NL.sort(dim=1).values
    starts_run = sorted_NL[:, 1:] != sorted_NL[:, :-1]
    run_NL = torch.nn.functional.pad(starts_run.long().cumsum(dim=1), (1, 0))
    return torch.zeros_like(run_NL).scatter_add(1, run_NL, torch.ones_like(run_NL))


def ngram_ids(sequences_NL: Tensor, n: int) -> Tensor:
    """A number for each n-gram, equal exactly where n-grams are: int64 ``[N, L - n + 1]``, dense from 0."""
    check_token_ids(sequences_NL)
    length = sequences_NL.shape[1]
    check_count("n", n)
    if n > length:
        raise ValueError(f"n-grams of {n} tokens cannot be taken from samples of {length} tokens")
    tokens_NL = _dense(sequences_NL)
    num_tokens = int(tokens_NL.max()) + 1
    grams = tokens_NL
    for offset in range(1, n):
        grams = _dense(grams[:, : length - offset] * num_tokens + tokens_NL[:, offset:])
    return grams


def _dense(ids: Tensor) -> Tensor:
    return torch.unique(ids, return_inverse=True)[1]
