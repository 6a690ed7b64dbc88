"""Diversity between samples: what perplexity at equal entropy cannot see.

The unigram entropy of a sample, at which perplexities are compared, contains no information on other samples: a sampler
that repeats one text has the entropy of data and a better perplexity. The figures of this module compare samples with
one another and with data. All depend on the number of samples and their length: compare them at equal N and L.

Shape suffixes: N samples, M sequences of data, L length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_token_ids
from .diversity import ngram_ids
from .ngram import NGramJudge
from .perplexity import generative_perplexity

ENTROPY_ORDERS = (1, 2, 3)
OVERLAP_ORDER = 4
JACKKNIFE_GROUPS = 8


class Estimate(NamedTuple):
    """A figure and its standard error over samples; None where there are too few samples.

    Examples:
        >>> value, standard_error = sample_agreement(torch.tensor([[0, 1], [0, 2], [0, 1]]))
        >>> round(value, 4)  # Of six pairs of tokens four are equal.
        0.6667
    """

    value: float
    standard_error: float | None


@dataclass(frozen=True, kw_only=True)
class BetweenSampleDiversity:
    """Figures of one set of samples.

    Attributes:
        agreement: `sample_agreement`.
        nearest_overlap: mean `nearest_overlap` of n-grams.
        entropies: `ngram_entropy` by n, in nats.
        reverse_nats: log of `reverse_perplexity`, in nats per token; None without data.

    Examples:
        >>> diversity = measure_between_samples(torch.zeros(4, 16, dtype=torch.long))  # Four times the same sample.
        >>> diversity.agreement.value, diversity.entropies[1].value
        (1.0, 0.0)
    """

    agreement: Estimate
    nearest_overlap: Estimate
    entropies: dict[int, Estimate]
    reverse_nats: Estimate | None

    def figures(self) -> dict[str, Estimate]:
        """All figures by name: ``agreement``, ``nearest_overlap``, ``entropy_1`` and so on, ``reverse_nats``."""
        found = {"agreement": self.agreement, "nearest_overlap": self.nearest_overlap}
        found |= {f"entropy_{n}": estimate for n, estimate in self.entropies.items()}
        return found if self.reverse_nats is None else {**found, "reverse_nats": self.reverse_nats}


def mean_figures(sets: Sequence[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    """Mean over sets of samples of the figures that all of them have.

    Args:
        sets: figures by name, of independent sets of equal size.

    Returns:
        Figures by name; the standard error is that of the mean, None where a set has none.

    Examples:
        >>> mean_figures([{"agreement": Estimate(0.2, 0.03)}, {"agreement": Estimate(0.4, 0.04)}])
        {'agreement': Estimate(value=0.3..., standard_error=0.025)}
    """
    found: dict[str, Estimate] = {}
    for name in sets[0] if sets else ():
        if not all(name in each for each in sets):
            continue
        errors = [each[name].standard_error for each in sets]
        known = [error for error in errors if error is not None]
        error = math.hypot(*known) / len(sets) if len(known) == len(sets) else None
        found[name] = Estimate(math.fsum(each[name].value for each in sets) / len(sets), error)
    return found


def measure_between_samples(
    sequences_NL: Tensor,
    data_ML: Tensor | None = None,
    *,
    groups_N: Tensor | None = None,
    generation_mask_NL: Tensor | None = None,
) -> BetweenSampleDiversity:
    """Measure all figures of this module.

    Args:
        sequences_NL: token ids, int64 ``[N, L]``.
        data_ML: held-out data, int64 ``[M, L']``; None to leave reverse perplexity out.
        groups_N: see `sample_agreement`.
        generation_mask_NL: see `sample_agreement`.

    Raises:
        ValueError: for fewer than two samples, or shapes that do not agree.

    Examples:
        >>> samples = AncestralSampler(process, num_steps=8)(student, shape=(8, 16), generator=generator).sequences
        >>> sorted(measure_between_samples(samples, data).figures())
        ['agreement', 'entropy_1', ..., 'nearest_overlap', 'reverse_nats']
    """
    check_token_ids(sequences_NL)
    length = sequences_NL.shape[1]
    reverse = None if data_ML is None else reverse_perplexity(sequences_NL, data_ML)
    return BetweenSampleDiversity(
        agreement=sample_agreement(sequences_NL, groups_N=groups_N, generation_mask_NL=generation_mask_NL),
        nearest_overlap=nearest_overlap(sequences_NL, min(OVERLAP_ORDER, length)),
        entropies={n: ngram_entropy(sequences_NL, n) for n in ENTROPY_ORDERS if n <= length},
        reverse_nats=reverse,
    )


def sample_agreement(
    sequences_NL: Tensor, *, groups_N: Tensor | None = None, generation_mask_NL: Tensor | None = None
) -> Estimate:
    """Probability that two samples have the same token at the same position.

    ``sum_{i != j, l} [x_il = x_jl] / sum_{i != j, l} 1`` over pairs of one group and positions generated in both.
    Samples that are copies of one another have 1; independent ones ``mean_l sum_v p_l(v)^2``.

    Args:
        sequences_NL: token ids, int64 ``[N, L]``.
        groups_N: int ``[N]``, number of the prompt of each sample: only samples of one prompt are compared. One group
            by default.
        generation_mask_NL: bool ``[N, L]``, true at generated tokens. All by default.

    Returns:
        The probability, with the jackknife standard error over samples.

    Raises:
        ValueError: if no two samples of a group share a generated position, or shapes do not agree.

    Examples:
        >>> sample_agreement(torch.tensor([[0, 1], [0, 2], [0, 1]])).value
        0.6666666666666666
    """
    check_token_ids(sequences_NL)
    num_samples, length = sequences_NL.shape
    device = sequences_NL.device
    groups_N = torch.zeros(num_samples, dtype=torch.long, device=device) if groups_N is None else groups_N.long()
    if groups_N.shape != (num_samples,):
        raise ValueError(f"groups_N must have one number for each of {num_samples} samples, got {list(groups_N.shape)}")
    mask_NL = torch.ones_like(sequences_NL, dtype=torch.bool) if generation_mask_NL is None else generation_mask_NL
    if mask_NL.shape != sequences_NL.shape:
        raise ValueError(
            f"generation_mask_NL must have shape {list(sequences_NL.shape)} of the samples, got {list(mask_NL.shape)}"
        )
    place_NL = groups_N[:, None] * length + torch.arange(length, device=device)
    others_NL = _others_with_the_same(place_NL, mask_NL)
    tokens_NL = torch.unique(sequences_NL, return_inverse=True)[1]
    equal_NL = _others_with_the_same(place_NL * (int(tokens_NL.max()) + 1) + tokens_NL, mask_NL)
    equal_N, pairs_N = equal_NL.sum(1).double(), others_NL.sum(1).double()
    if not bool(pairs_N.any()):
        raise ValueError("agreement needs two samples of one group that share a generated position")
    # Without sample i, its pairs are gone from both ends.
    without_N = (equal_N.sum() - 2.0 * equal_N) / (pairs_N.sum() - 2.0 * pairs_N)
    return Estimate(float(equal_N.sum() / pairs_N.sum()), _jackknife_error(without_N))


def nearest_overlap(sequences_NL: Tensor, n: int = 4) -> Estimate:
    """Mean over samples of the largest fraction of its different n-grams that one *other* sample holds.

    1 where each sample has a copy; near 0 for independent texts. Unlike `overlap_n`, it does not count n-grams that are
    scattered over many others.

    Args:
        sequences_NL: token ids, int64 ``[N, L]``.
        n: length of the n-grams, in ``[1, L]``.

    Returns:
        A fraction, with the standard error of the mean over samples.

    Raises:
        ValueError: for fewer than two samples, or an ``n`` that does not fit.

    Examples:
        >>> nearest_overlap(torch.tensor([[0, 1, 2], [0, 1, 3], [4, 5, 6]]), n=2).value  # 1/2, 1/2 and 0
        0.333...
    """
    grams_NG = ngram_ids(sequences_NL, n)
    num_samples = len(grams_NG)
    if num_samples < 2:
        raise ValueError("the nearest other sample needs two samples or more, got 1")
    owner_NG = torch.arange(num_samples, device=grams_NG.device)[:, None].expand_as(grams_NG)
    pairs = torch.unique(grams_NG.flatten() * num_samples + owner_NG.flatten())
    gram, owner = pairs // num_samples, pairs % num_samples
    different_N = torch.bincount(owner, minlength=num_samples).double()
    shared = (torch.bincount(gram) > 1)[gram]
    column = torch.unique(gram[shared], return_inverse=True)[1]
    common_NN = torch.zeros(num_samples, num_samples, dtype=torch.float64, device=grams_NG.device)
    for start in range(0, int(column.max()) + 1 if column.numel() else 0, 4096):
        inside = (column >= start) & (column < start + 4096)
        held_NC = torch.zeros(num_samples, 4096, dtype=torch.float64, device=grams_NG.device)
        held_NC[owner[shared][inside], column[inside] - start] = 1.0
        common_NN += held_NC @ held_NC.T
    common_NN.fill_diagonal_(-1.0)
    nearest_N = common_NN.max(dim=1).values / different_N
    return Estimate(float(nearest_N.mean()), float(nearest_N.std()) / math.sqrt(num_samples))


def ngram_entropy(sequences_NL: Tensor, n: int) -> Estimate:
    """Entropy of the n-grams of all samples together, in nats: falls when samples grow alike.

    The plug-in estimate is below the entropy of the distribution by about ``(different n-grams - 1) / (2 n-grams)``.

    Args:
        sequences_NL: token ids, int64 ``[N, L]``.
        n: length of the n-grams, in ``[1, L]``.

    Returns:
        Nats, with the jackknife standard error over samples.

    Raises:
        ValueError: if ``n`` does not fit.

    Examples:
        >>> round(ngram_entropy(torch.tensor([[0, 1], [2, 3]]), n=2).value, 4)  # Two different bigrams: log(2).
        0.6931
    """
    grams_NG = ngram_ids(sequences_NL, n)
    num_samples, per_sample = grams_NG.shape
    counts = torch.bincount(grams_NG.flatten())
    owner_NG = torch.arange(num_samples, device=grams_NG.device)[:, None].expand_as(grams_NG)
    pairs, held = torch.unique(grams_NG.flatten() * num_samples + owner_NG.flatten(), return_counts=True)
    gram, owner = pairs // num_samples, pairs % num_samples
    change = _x_log_x(counts[gram] - held) - _x_log_x(counts[gram])
    sum_without_N = _x_log_x(counts).sum() + change.new_zeros(num_samples).index_add(0, owner, change)
    total, left = num_samples * per_sample, (num_samples - 1) * per_sample
    value = math.log(total) - float(_x_log_x(counts).sum()) / total
    error = _jackknife_error(math.log(left) - sum_without_N / left) if left else None
    return Estimate(value, error)


def reverse_perplexity(samples_NL: Tensor, data_ML: Tensor, *, order: int = 3) -> Estimate:
    """Log-perplexity of held-out data under an n-gram model of the samples (Zhao et al. 2018, arXiv 1706.04223).

    High where the samples lack parts of the data. The model is the interpolated one of `NGramJudge` instead of the
    recurrent network of the paper. The floor is the same figure for as many sequences of other data.

    Args:
        samples_NL: samples, int64 ``[N, L]``.
        data_ML: held-out data, int64 ``[M, L']``.
        order: n of the model.

    Returns:
        Nats per token; ``exp`` of it is the reverse perplexity. The standard error is a jackknife over eight groups of
        samples; data are held fixed, so that two sets of samples are compared on the same data.

    Raises:
        ValueError: for shapes without a token, or an order below 1.

    Examples:
        >>> collapsed = data[:1].repeat(8, 1)
        >>> reverse_perplexity(collapsed, data).value > reverse_perplexity(data, data).value
        True
    """
    check_token_ids(samples_NL)
    check_token_ids(data_ML)
    vocab_size = 1 + max(int(samples_NL.max()), int(data_ML.max()))

    def nats(kept_NL: Tensor) -> float:
        return generative_perplexity(data_ML, NGramJudge(kept_NL, vocab_size=vocab_size, order=order)).nats_per_token

    groups = min(JACKKNIFE_GROUPS, len(samples_NL))
    group_N = torch.arange(len(samples_NL), device=samples_NL.device) % groups
    without = [nats(samples_NL[group_N != group]) for group in range(groups)] if groups > 1 else []
    return Estimate(nats(samples_NL), _jackknife_error(torch.tensor(without, dtype=torch.float64)))


def _others_with_the_same(code_NL: Tensor, mask_NL: Tensor) -> Tensor:
    """At each position of the mask, how many others have its code; 0 elsewhere."""
    _, place, counts = torch.unique(code_NL[mask_NL], return_inverse=True, return_counts=True)
    return torch.zeros_like(code_NL).masked_scatter(mask_NL, counts[place] - 1)


def _x_log_x(counts: Tensor) -> Tensor:
    return torch.special.xlogy(counts.double(), counts.double())


def _jackknife_error(without: Tensor) -> float | None:
    """From the figure without each of its parts; None if it is not finite for one of them."""
    count = len(without)
    if count < 2 or not bool(without.isfinite().all()):
        return None
    return math.sqrt((count - 1) / count * float((without - without.mean()).square().sum()))
