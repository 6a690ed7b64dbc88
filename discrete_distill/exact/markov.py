"""A Markov chain as a language of which everything is known.

Shape suffixes: B batch, L length, K words of the language (no mask).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from ..checks import check_count, check_generator
from .chain_denoiser import ChainDenoiser
from .enumeration import check_enumerable
from .messages import backward_messages, evidence_of_tokens, forward_messages
from .pairs import pair_marginals
from .vocabulary import check_ids, tokens_of_words

SUM_TOLERANCE = 1e-6


class MarkovChain:
    """``P(x) = initial[x_1] prod_i transition[x_{i-1}, x_i]`` over sequences of any length, in fp64.

    Args:
        initial: ``[K]``, distribution of the first word.
        transition: ``[K, K]``, row ``a`` is the distribution of the word after ``a``.

    Rows are renormalised exactly after they have been checked.

    Raises:
        ValueError: if shapes do not fit, an entry is negative or not finite, or a row does not sum to one
            within 1e-6.

    Examples:
        >>> chain = MarkovChain(torch.tensor([0.5, 0.5]), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
        >>> chain.log_prob(torch.tensor([[0, 0, 1]])).exp()  # 0.5 * 0.9 * 0.1
        tensor([0.0450], dtype=torch.float64)
        >>> round(chain.total_correlation(2), 4)  # What one step of independent tokens loses, at the least.
        0.3681
    """

    def __init__(self, initial: Tensor, transition: Tensor) -> None:
        if initial.dim() != 1 or transition.shape != (initial.shape[0], initial.shape[0]):
            raise ValueError(
                f"initial must be [K] and transition [K, K], got {list(initial.shape)} and {list(transition.shape)}"
            )
        self.initial = _normalised(initial.detach()[None], "initial")[0]
        self.transition = _normalised(transition.detach(), "transition")

    @property
    def vocab_size(self) -> int:
        """K, the number of words, mask not counted."""
        return self.initial.shape[0]

    def to(self, device: torch.device | str) -> MarkovChain:
        """The same chain with its tables on ``device``."""
        return MarkovChain(self.initial.to(device), self.transition.to(device))

    def log_prob(self, x: Tensor) -> Tensor:
        """``log P(x)`` in nats.

        Args:
            x: words, int64 ``[B, L]`` in ``0 .. K - 1``.

        Returns:
            fp64 ``[B]``; -inf for what cannot happen.

        Raises:
            ValueError: if ``x`` is not a batch of words.
        """
        check_ids(x, self.vocab_size, "words")
        first = self.initial.log()[x[:, 0]]
        return first + self.transition.log()[x[:, :-1], x[:, 1:]].sum(1)

    def log_evidence(self, x_t: Tensor, mask_token_id: int) -> Tensor:
        """Log-probability of the visible tokens of ``x_t``, the masked ones summed out, by forward filtering.

        Up to the factor ``alpha^visible (1 - alpha)^masked`` this is ``log q(x_t, t)``; the factor cancels in
        every ratio.

        Args:
            x_t: token ids, int64 ``[B, L]`` in ``0 .. K``.
            mask_token_id: id of the mask.

        Returns:
            fp64 ``[B]``; -inf for impossible evidence.
        """
        evidence_BLK = evidence_of_tokens(x_t, mask_token_id, self.vocab_size)
        return forward_messages(self.initial, self.transition, evidence_BLK).log_normaliser

    def sample(self, n: int, length: int, *, generator: Generator | None = None) -> Tensor:
        """``n`` independent sequences of words, int64 ``[n, length]``, by inverse-CDF; O(n length K).

        Raises:
            ValueError: if ``n`` or ``length`` is less than 1.
        """
        check_count("n", n)
        check_count("length", length)
        check_generator(generator)
        device = self.initial.device
        uniform = torch.rand(n, length, dtype=torch.float64, device=device, generator=generator)
        word = _inverse_cdf(self.initial.expand(n, -1), uniform[:, 0])
        words = [word]
        for i in range(1, length):
            word = _inverse_cdf(self.transition[word], uniform[:, i])
            words.append(word)
        return torch.stack(words, dim=1)

    def complete(self, x_t: Tensor, mask_token_id: int, *, generator: Generator | None = None) -> Tensor:
        """Fill the masks of ``x_t`` from the exact joint posterior: backward filtering, forward sampling.

        What a sampler with unlimited steps and ``x_init = x_t`` would draw from.

        Args:
            x_t: token ids, int64 ``[B, L]``.
            mask_token_id: id of the mask.
            generator: source of randomness.

        Returns:
            Token ids without masks, int64 ``[B, L]``.

        Raises:
            ValueError: if the visible tokens of a row have probability zero.
        """
        evidence_BLK = evidence_of_tokens(x_t, mask_token_id, self.vocab_size)
        self._check_possible(x_t, mask_token_id)
        likelihood_BLK = evidence_BLK * backward_messages(self.transition, evidence_BLK)
        uniform = torch.rand(x_t.shape, dtype=torch.float64, device=x_t.device, generator=generator)
        prior = self.initial.expand(x_t.shape[0], -1)
        words = []
        for i in range(x_t.shape[1]):
            words.append(_inverse_cdf(prior * likelihood_BLK[:, i], uniform[:, i]))
            prior = self.transition[words[-1]]
        return tokens_of_words(torch.stack(words, dim=1), mask_token_id)

    def _check_possible(self, x_t: Tensor, mask_token_id: int) -> None:
        impossible = self.log_evidence(x_t, mask_token_id) == float("-inf")
        if bool(impossible.any()):
            row = int(impossible.nonzero()[0])
            raise ValueError(f"the visible tokens of row {row} have probability zero: {x_t[row].tolist()}")

    def marginals(self, length: int) -> Tensor:
        """Distribution of each position, fp64 ``[length, K]``."""
        rows = [self.initial]
        for _ in range(length - 1):
            rows.append(rows[-1] @ self.transition)
        return torch.stack(rows)

    def entropy(self, length: int) -> float:
        """``H(x_1) + sum_i H(x_i | x_{i-1})`` in nats, for a whole sequence."""
        marginals_LK = self.marginals(length)
        row_entropy_K = torch.special.entr(self.transition).sum(1)
        first = torch.special.entr(self.initial).sum()
        return float(first + (marginals_LK[:-1] @ row_entropy_K).sum())

    def total_correlation(self, length: int) -> float:
        """``sum_i H(x_i) - H(x)`` in nats: the minimum forward KL of any one-step sampler."""
        return float(torch.special.entr(self.marginals(length)).sum()) - self.entropy(length)

    def conditional_total_correlation(self, x_t: Tensor, mask_token_id: int) -> Tensor:
        """Compute ``sum_i H(x_i | visible) - H(x | visible)``: the minimum forward KL of filling all masks in one step.

        Given the visible tokens the words are a Markov chain, so this is ``sum_i I(x_i; x_{i+1} | visible)``. With all
        positions masked it is `total_correlation`.

        Args:
            x_t: token ids, int64 ``[B, L]`` in ``0 .. K``.
            mask_token_id: id of the mask.

        Returns:
            fp64 ``[B]``, nats.

        Raises:
            ValueError: if the visible tokens of a row have probability zero.
        """
        evidence_BLK = evidence_of_tokens(x_t, mask_token_id, self.vocab_size)
        self._check_possible(x_t, mask_token_id)
        if x_t.shape[1] == 1:
            return evidence_BLK.new_zeros(len(x_t))
        pairs = pair_marginals(self.initial, self.transition, evidence_BLK)
        entropy = torch.special.entr
        alone = entropy(pairs.sum(3)).sum(2) + entropy(pairs.sum(2)).sum(2)
        return (alone - entropy(pairs).sum((2, 3))).sum(1)

    def distribution(self, length: int) -> Tensor:
        """Probabilities of all sequences, fp64 of shape ``[K] * length``, indexed ``distribution[x_1, ..., x_L]``.

        Raises:
            ValueError: if there are too many to enumerate.
        """
        return self.window_distribution(0, length)

    def window_distribution(self, start: int, width: int) -> Tensor:
        """Distribution of ``x[start : start + width]``, fp64 ``[K] * width``: exact n-grams at any length.

        Raises:
            ValueError: if there are too many n-grams to enumerate, or the window is empty.
        """
        if start < 0 or width < 1:
            raise ValueError(f"a window starts at 0 or later and has width 1 or more, got {start} and {width}")
        check_enumerable(self.vocab_size, width, f"all {width}-grams")
        distribution = self.marginals(start + 1)[start]
        for _ in range(width - 1):
            distribution = distribution[..., None] * self.transition
        return distribution

    def denoiser(self, mask_token_id: int, *, impossible: Literal["raise", "uniform"] = "raise") -> ChainDenoiser:
        """The perfect denoiser of this chain: see `ChainDenoiser`."""
        return ChainDenoiser(self.initial, self.transition, mask_token_id, impossible=impossible)


def _normalised(rows: Tensor, name: str) -> Tensor:
    rows = rows.double()
    bad = ~torch.isfinite(rows) | (rows < 0)
    if bool(bad.any()):
        raise ValueError(f"{name} holds {rows[bad][0].item()}; probabilities are finite and not negative")
    sums = rows.sum(1, keepdim=True)
    off = (sums.squeeze(1) - 1).abs() > SUM_TOLERANCE
    if bool(off.any()):
        row = int(off.nonzero()[0])
        raise ValueError(f"row {row} of {name} sums to {sums[row].item():.9g}, not to 1; divide each row by its sum")
    return rows / sums


def _inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """One draw from each row of unnormalised ``weights`` ``[n, K]``; entries of weight 0 are never drawn."""
    cumulative = weights.cumsum(1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, threshold, right=True).squeeze(1)
    last_possible = weights.shape[1] - 1 - (weights.flip(1) > 0).long().argmax(1)
    return drawn.minimum(last_possible)
