"""Self-BLEU (arXiv 1802.01886): how well the other samples of a set predict the n-grams of each; high when samples are
alike."""

from __future__ import annotations

import math
from collections import Counter

from torch import Tensor

from ..checks import check_count
from .checks import check_token_ids


def self_bleu(sequences_NL: Tensor, *, order: int = 4) -> float:
    """Mean over samples of BLEU against all others: the geometric mean over ``n = 1 .. order`` of clipped precisions.

    A count is clipped to the maximum in any *one* other sample. All samples have one length, so there is no brevity
    penalty. A precision of zero is smoothed to half a match, ``1 / (2 (L - n + 1))``, since the score of a sample
    without a common 4-gram would be 0 otherwise. The cost is linear in the number of samples: for each n-gram the two
    samples that hold it most often are kept.

    Args:
        sequences_NL: token ids, int64 ``[N, L]``.
        order: longest n-gram (paper: 2 to 5).

    Returns:
        In ``[0, 1]``.

    Raises:
        ValueError: for fewer than two samples, or an order that is not in ``[1, L]``.

    Examples:
        >>> self_bleu(torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]]))  # Two copies of one sample.
        1.0
        >>> self_bleu(torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])) < 0.3
        True
    """
    check_token_ids(sequences_NL)
    count, length = sequences_NL.shape
    check_count("order", order)
    if count < 2 or order > length:
        raise ValueError(
            f"self-BLEU of order {order} needs two samples of {order} tokens or more, got {count} of {length}"
        )
    rows = sequences_NL.tolist()
    log_precisions = [0.0] * count
    for n in range(1, order + 1):
        grams = [Counter(zip(*(row[k:] for k in range(n)), strict=False)) for row in rows]
        highest = _two_highest(grams)
        total = length - n + 1
        for index, counts in enumerate(grams):
            matches = sum(min(times, _highest_elsewhere(highest[gram], index)) for gram, times in counts.items())
            log_precisions[index] += math.log(max(matches, 0.5) / total) / order
    return math.fsum(math.exp(value) for value in log_precisions) / count


def _two_highest(grams: list[Counter]) -> dict[tuple, tuple[int, int, int]]:
    """For each n-gram: who holds it most often, how often, and how often the next."""
    found: dict[tuple, tuple[int, int, int]] = {}
    for index, counts in enumerate(grams):
        for gram, times in counts.items():
            owner, most, second = found.get(gram, (-1, 0, 0))
            if times > most:
                found[gram] = (index, times, most)
            elif times > second:
                found[gram] = (owner, most, times)
    return found


def _highest_elsewhere(held: tuple[int, int, int], index: int) -> int:
    owner, most, second = held
    return second if owner == index else most
