"""How many masks each step of a grid reveals where that is fixed beforehand, in exact arithmetic.

A share of masks such as 11 / 12 has no exact floating-point value, and the floor of its product with 12 may be 10. The
shares are therefore made rational numbers first, and only these are multiplied and rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch

from ..process import MaskedDiffusion

MAX_DENOMINATOR = 2**12
"""Of the rational numbers, unless there are more steps: fp32 times ``k / K`` are recognised up to this ``K``."""


def hidden_shares(process: MaskedDiffusion, times: Sequence[float]) -> list[Fraction]:
    """Expected share of the masks present at ``times[0]`` that are still there at each time, from 1 down.

    ``(1 - alpha(t)) / (1 - alpha(times[0]))``, and 0 at time 0: masks that are there are hidden, whatever share of them
    the schedule leaves visible at ``times[0]``.
    """
    alpha = process.schedule.alpha(torch.tensor(times, dtype=torch.float64))
    hidden = [0.0 if time <= 0.0 else value for time, value in zip(times, (1.0 - alpha).tolist(), strict=True)]
    denominator = max(MAX_DENOMINATOR, len(times))
    shares = [Fraction(1)]
    for value in hidden[1:]:
        share = Fraction(value / hidden[0]) if hidden[0] > 0.0 else Fraction(0)
        shares.append(min(share.limit_denominator(denominator), shares[-1]))
    return shares


def masks_left(shares: Sequence[Fraction], count: int) -> list[int]:
    """``floor(share * count)`` at each time."""
    return [share.numerator * count // share.denominator for share in shares]


def dealt_out(shares: Sequence[Fraction], count: int) -> list[int]:
    """Masks left of ``count`` at each time, if each step reveals its part of the shares, rounded to whole tokens.

    Parts are rounded down, and the tokens that remain go to the steps of the largest remainders, the first of equal
    ones first. With ``K`` equal steps that is LLaDA's ``get_num_transfer_tokens``: ``count // K`` tokens each, and one
    more in the first ``count % K`` steps. What the grid leaves at its end is a part like those of the steps, the last.
    """
    parts = [before - after for before, after in zip(shares, [*shares[1:], Fraction(0)], strict=True)]
    quotas = [part * count for part in parts]
    given = [quota.numerator // quota.denominator for quota in quotas]
    by_remainder = sorted(range(len(parts)), key=lambda step: given[step] - quotas[step])
    for step in by_remainder[: count - sum(given)]:
        given[step] += 1
    left = [count]
    for amount in given[:-1]:
        left.append(left[-1] - amount)
    return left
