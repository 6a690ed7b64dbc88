"""Seeds: a run's seed, a step and a rank are hashed into one generator, with no state to save."""

from __future__ import annotations

import hashlib

import torch
from torch import Generator

from ..checks import check_count


def fold_seed(*numbers: int | str) -> int:
    """A 63-bit seed from any numbers and names; differs as soon as one of them does.

    Examples:
        >>> seed = fold_seed(0, "student", 1)
        >>> seed == fold_seed(0, "student", 1), seed == fold_seed(0, "student", 2)
        (True, False)
    """
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def step_generator(seed: int, step: int, *, rank: int = 0, device: torch.device | str = "cpu") -> Generator:
    """The generator of one training step on one rank.

    Raises:
        TypeError: if a number is no integer.
        ValueError: if step or rank is negative.

    Examples:
        >>> first, again = step_generator(seed=0, step=7), step_generator(seed=0, step=7)
        >>> torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=again))
        True
    """
    check_count("seed", seed, minimum=-(2**63))
    check_count("step", step, minimum=0)
    check_count("rank", rank, minimum=0)
    return Generator(device=device).manual_seed(fold_seed(seed, step, rank))
