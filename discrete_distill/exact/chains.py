"""Random chains, and the two on which the library proves and measures itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator

from ..checks import check_count, check_number
from .markov import MarkovChain


class StandardChain(NamedTuple):
    """A chain and the length at which it is used.

    Examples:
        >>> chain, length = small_chain()
        >>> chain.vocab_size, length, chain.sample(2, length, generator=generator).shape
        (5, 6, torch.Size([2, 6]))
    """

    chain: MarkovChain
    length: int


def random_chain(vocab_size: int, generator: Generator, concentration: float = 0.4) -> MarkovChain:
    """Initial distribution and every transition row drawn from a symmetric Dirichlet, fp64, on the generator's device.

    Args:
        vocab_size: words of the language, mask not counted.
        generator: the seed is the distribution.
        concentration: of the Dirichlet; small gives peaked rows and strong correlations, large gives noise.

    Raises:
        ValueError: if ``vocab_size`` is less than 1 or ``concentration`` is not positive.

    Examples:
        >>> chain = random_chain(3, torch.Generator().manual_seed(0), concentration=0.4)
        >>> chain.vocab_size, chain.sample(2, 16, generator=generator).shape
        (3, torch.Size([2, 16]))
    """
    check_count("vocab_size", vocab_size)
    check_number("concentration", concentration, exclusive_minimum=0.0)
    shape = (vocab_size + 1, vocab_size)
    alpha = torch.full(shape, concentration, dtype=torch.float64, device=generator.device)
    # torch.distributions takes no generator; this is the primitive it is made of.
    rows = torch._sample_dirichlet(alpha, generator=generator)
    return MarkovChain(rows[0], rows[1:])


def small_chain() -> StandardChain:
    """Five words, length 6: enumerable, so every quantity of it is exact.

    Examples:
        >>> language, length = small_chain()
        >>> language.distribution(length).shape  # The probabilities of all sequences.
        torch.Size([5, 5, 5, 5, 5, 5])
    """
    return StandardChain(random_chain(5, torch.Generator().manual_seed(13), 0.4), 6)


def large_chain() -> StandardChain:
    """Eight words, length 16: too large to enumerate, compared by likelihood and n-grams.

    Examples:
        >>> language, length = large_chain()
        >>> language.sample(64, length, generator=generator).shape
        torch.Size([64, 16])
    """
    return StandardChain(random_chain(8, torch.Generator().manual_seed(13), 0.4), 16)
