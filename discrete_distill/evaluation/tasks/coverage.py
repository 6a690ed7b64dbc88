"""Coverage: whether a sampler gives all right answers alike, or the same few again and again.

``N`` is the number of right answers and ``n`` the number of right samples. A sampler that is right because it repeats
one answer has an accuracy of 1 and a coverage that shows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import check_count, check_floats
from ...exact import enumerate_sequences
from ..checks import check_token_ids
from .symbol_task import SymbolTask


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Coverage of right samples, with the expectation for a uniform sampler of as many samples.

    The plug-in divergence is biased upwards by the noise of counts: by about ``(N - 1) / (2 n)`` where ``n`` is large
    against ``N``; where ``n`` is small it is at least ``log(N / n)`` for any sampler. ``excess_kl`` subtracts the
    expectation for a uniform sampler: it is 0 on average for a uniform sampler, tends to the divergence for any sampler
    as ``n`` grows, and is too small where ``n`` is not large against ``N``. There, read ``num_distinct``.

    Attributes:
        num_samples: ``n``, right samples.
        num_solutions: ``N``, right answers.
        num_distinct: different ones among the samples.
        distinct_expected: the same of a uniform sampler, on average.
        distinct_deviation: its standard deviation over sets of samples.
        kl_from_uniform: plug-in estimate of ``KL(samples || uniform) = log N - H``, nats.
        kl_of_uniform: the plug-in estimate of a uniform sampler, on average, nats.

    Examples:
        >>> samples = torch.tensor([[0, 1], [0, 1], [1, 0], [1, 0]])
        >>> coverage = measure_coverage(samples, num_solutions=4)
        >>> coverage.num_distinct, round(coverage.kl_from_uniform, 4)  # log(4) - log(2)
        (2, 0.6931)
    """

    num_samples: int
    num_solutions: int
    num_distinct: int
    distinct_expected: float
    distinct_deviation: float
    kl_from_uniform: float
    kl_of_uniform: float

    @property
    def excess_kl(self) -> float:
        """``kl_from_uniform - kl_of_uniform``, nats."""
        return self.kl_from_uniform - self.kl_of_uniform


def measure_coverage(sequences: Tensor, num_solutions: int) -> Coverage:
    """Coverage of right answers.

    Args:
        sequences: right samples alone, token ids ``[n, L]``.
        num_solutions: number of right answers.

    Raises:
        TypeError: if the sequences hold no integers, or the number is none.
        ValueError: if there are no sequences, or more different ones than right answers.

    Examples:
        >>> task = Permutations(3, mask_token_id=3)
        >>> right = task.sample_solutions(512, generator).sequences
        >>> measure_coverage(right, task.num_solutions).num_distinct
        6
    """
    check_token_ids(sequences, "right samples")
    check_count("num_solutions", num_solutions)
    counts = sequences.unique(dim=0, return_counts=True)[1].double()
    if len(counts) > num_solutions:
        raise ValueError(
            f"{len(counts)} different samples are more than the {num_solutions} right answers; pass right samples alone"
        )
    n = len(sequences)
    entropy = math.log(n) - float((counts * counts.log()).sum()) / n
    return Coverage(
        num_samples=n,
        num_solutions=num_solutions,
        num_distinct=len(counts),
        distinct_expected=distinct_expected(n, num_solutions),
        distinct_deviation=distinct_deviation(n, num_solutions),
        kl_from_uniform=math.log(num_solutions) - entropy,
        kl_of_uniform=plug_in_kl_of_uniform(n, num_solutions),
    )


def distinct_expected(num_samples: int, num_solutions: int) -> float:
    """Expected number of different answers among samples of a uniform sampler: ``N (1 - (1 - 1/N)^n)``.

    Args:
        num_samples: ``n``, 0 or more.
        num_solutions: ``N``.

    Examples:
        >>> distinct_expected(2, 4)  # 4 (1 - (3/4)^2)
        1.75
    """
    n, total = check_count("num_samples", num_samples, minimum=0), check_count("num_solutions", num_solutions)
    if total == 1 or n == 0:
        return float(min(n, 1))
    return -total * math.expm1(n * math.log1p(-1.0 / total))


def distinct_deviation(num_samples: int, num_solutions: int) -> float:
    """Standard deviation of the number of different answers among samples of a uniform sampler.

    With the probabilities ``p = (1 - 1/N)^n`` and ``q = (1 - 2/N)^n`` that one answer, and that two, are not drawn, the
    variance is ``N p (1 - p) + N (N - 1) (q - p^2)``; where ``n / N`` is small, ``n (n - 1) / (2 N)``.

    Args:
        num_samples: ``n``, 0 or more.
        num_solutions: ``N``.

    Examples:
        >>> distinct_deviation(2, 2)  # One or two, equally likely.
        0.5
    """
    n, total = check_count("num_samples", num_samples, minimum=0), check_count("num_solutions", num_solutions)
    if total == 1 or n < 2:
        return 0.0
    if n / total < 1e-4:  # The terms of the variance cancel.
        return math.sqrt(n * (n - 1) / (2.0 * total))
    p = math.exp(n * math.log1p(-1.0 / total))
    # q / p^2 = (1 - 1 / (N - 1)^2)^n; of two answers one is always drawn.
    excess = -1.0 if total == 2 else math.expm1(n * math.log1p(-1.0 / (total - 1.0) ** 2))
    return math.sqrt(max(total * p * (1.0 - p) + total * (total - 1.0) * p * p * excess, 0.0))


def plug_in_kl_of_uniform(num_samples: int, num_solutions: int) -> float:
    """Expectation of the plug-in estimate of the divergence from uniform, for samples that are uniform; nats.

    With ``K'`` binomial of ``n - 1`` trials of probability ``1 / N``, it is ``log(N / n) + E log(1 + K')``.
    """
    n, total = check_count("num_samples", num_samples), check_count("num_solutions", num_solutions)
    if total == 1:
        return 0.0
    trials, mean = n - 1, (n - 1) / total
    reach = 12.0 * math.sqrt(mean) + 40.0
    k = torch.arange(max(0, int(mean - reach)), min(trials, int(mean + reach)) + 1, dtype=torch.float64)
    choices = math.lgamma(n) - torch.lgamma(k + 1) - torch.lgamma(trials - k + 1)
    probability = (choices - k * math.log(total) + (trials - k) * math.log1p(-1.0 / total)).exp()
    return math.log(total) - math.log(n) + float((probability * k.log1p()).sum() / probability.sum())


@dataclass(frozen=True, kw_only=True)
class ExactCoverage:
    """Coverage by a sampler whose distribution is known.

    Attributes:
        validity: probability of a right answer.
        kl_from_uniform: ``KL(sampler given a right answer || uniform)``, nats; NaN where no answer is right.

    Examples:
        >>> task = Permutations(2, mask_token_id=2)  # "ab" and "ba" are right.
        >>> exact_coverage(task, torch.tensor([[0.1, 0.4], [0.4, 0.1]]))
        ExactCoverage(validity=0.8..., kl_from_uniform=0.0)
    """

    validity: float
    kl_from_uniform: float


def exact_coverage(task: SymbolTask, distribution: Tensor) -> ExactCoverage:
    """Validity and coverage of a distribution over all sequences, such as `exact.sampler_distribution` gives.

    Args:
        task: small, with a known number of right answers.
        distribution: probabilities, one axis of ``len(task.symbols)`` for each position.

    Raises:
        TypeError: if the distribution holds no floating-point numbers.
        ValueError: if its shape is not that of the task, or the task does not know its number of right answers.

    Examples:
        >>> task = Permutations(2, mask_token_id=2)  # "ab" and "ba" are right.
        >>> exact_coverage(task, torch.tensor([[0.0, 1.0], [0.0, 0.0]])).kl_from_uniform  # Always "ab": log(2).
        0.693...
    """
    check_floats("distribution", distribution)
    words, length = len(task.symbols), task.length
    if tuple(distribution.shape) != (words,) * length:
        raise ValueError(
            f"distribution has shape {list(distribution.shape)}, sequences of {task!r} {length} axes of {words}"
        )
    if task.num_solutions is None:
        raise ValueError(f"the right answers of {task!r} depend on the prompt; take a task without prompts")
    right = task.is_solution(enumerate_sequences(words, length))
    mass = distribution.double().flatten()[right]
    validity = float(mass.sum())
    share = mass / mass.sum()
    entropy = -float(torch.special.xlogy(share, share).sum())
    return ExactCoverage(validity=validity, kl_from_uniform=math.log(task.num_solutions) - entropy)
