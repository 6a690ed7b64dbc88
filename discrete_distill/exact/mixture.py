"""A mixture of Markov chains: a language with modes, of which everything is known.

Shape suffixes: B batch, L length, K words of the language (no mask), M modes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from ..checks import check_count
from .chains import random_chain
from .markov import MarkovChain
from .vocabulary import logits_of_words, word_ids


class MarkovMixture:
    """``P(x) = sum_m weight_m P_m(x)``: each sequence follows one of ``M`` chains from beginning to end.

    Args:
        weights: ``[M]``, probability of each mode.
        chains: ``M`` chains over the same words.

    Raises:
        ValueError: if the weights are not a distribution, or the chains differ in number or vocabulary.

    Examples:
        >>> stay = torch.eye(2)
        >>> chains = [MarkovChain(torch.tensor([0.9, 0.1]), stay), MarkovChain(torch.tensor([0.1, 0.9]), stay)]
        >>> mixture = MarkovMixture(torch.tensor([0.5, 0.5]), chains)
        >>> mixture.responsibilities(torch.tensor([[0, 2]]), mask_token_id=2)
        tensor([[0.9000, 0.1000]], dtype=torch.float64)
    """

    def __init__(self, weights: Tensor, chains: Sequence[MarkovChain]) -> None:
        if weights.shape != (len(chains),) or not chains:
            raise ValueError(f"one weight for each of {len(chains)} chains is needed, got {list(weights.shape)}")
        if not bool((weights > 0.0).all()) or abs(float(weights.double().sum()) - 1.0) > 1e-6:
            raise ValueError(f"weights must be positive and sum to 1, got {weights.tolist()}")
        if len({chain.vocab_size for chain in chains}) > 1:
            raise ValueError(f"chains must have one vocabulary, got {[chain.vocab_size for chain in chains]}")
        self.weights = weights.double() / weights.double().sum()
        self.chains = tuple(chains)

    @property
    def vocab_size(self) -> int:
        """K, the number of words, mask not counted."""
        return self.chains[0].vocab_size

    def log_joint(self, x_t: Tensor, mask_token_id: int) -> Tensor:
        """``log P(mode, visible tokens of x_t)``.

        Args:
            x_t: token ids, int64 ``[B, L]`` in ``0 .. K``.
            mask_token_id: id of the mask.

        Returns:
            fp64 ``[B, M]``; -inf for what cannot happen.
        """
        evidence = [chain.log_evidence(x_t, mask_token_id) for chain in self.chains]
        return torch.stack(evidence, dim=1) + self.weights.log()

    def responsibilities(self, x_t: Tensor, mask_token_id: int) -> Tensor:
        """``P(mode | visible tokens of x_t)``, fp64 ``[B, M]``; the weights where the evidence is impossible."""
        log_joint_BM = self.log_joint(x_t, mask_token_id)
        possible_B1 = log_joint_BM.isfinite().any(1, keepdim=True)
        return torch.where(possible_B1, log_joint_BM, self.weights.log()).softmax(1)

    def sample(self, n: int, length: int, *, generator: Generator | None = None) -> Tensor:
        """``n`` independent sequences of words, int64 ``[n, length]``."""
        mode_B = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        drawn = torch.stack([chain.sample(n, length, generator=generator) for chain in self.chains])
        return drawn[mode_B, torch.arange(n)]

    def distribution(self, length: int) -> Tensor:
        """Probabilities of all sequences, fp64 of shape ``[K] * length``.

        Raises:
            ValueError: if there are too many to enumerate.
        """
        distributions = torch.stack([chain.distribution(length) for chain in self.chains])
        return torch.tensordot(self.weights, distributions, dims=1)

    def mode_mass(self, distribution: Tensor) -> Tensor:
        """Mass of each mode under another distribution: ``E_{x ~ distribution} P(mode | x)``.

        Args:
            distribution: probabilities of all sequences, ``[K] * length``. Mass on impossible sequences belongs to no
                mode.

        Returns:
            fp64 ``[M]``; the weights for the mixture's own distribution.
        """
        distributions = torch.stack([chain.distribution(distribution.dim()) for chain in self.chains])
        joint = distributions * self.weights.view(-1, *[1] * distribution.dim())
        total = joint.sum(0)
        share = torch.where(total > 0.0, joint / total.clamp_min(torch.finfo(total.dtype).tiny), 0.0)
        return (share * distribution.double()).flatten(1).sum(1)

    def denoiser(self, mask_token_id: int, *, impossible: Literal["raise", "uniform"] = "raise") -> MixtureDenoiser:
        """The perfect denoiser of this mixture: see `MixtureDenoiser`."""
        return MixtureDenoiser(self, mask_token_id, impossible=impossible)


class MixtureDenoiser:
    """``log P(x_i = v | visible) = log sum_m P(m | visible) P_m(x_i = v | visible)``.

    A `Denoiser`, as `ChainDenoiser` is: logits fp64 ``[B, L, K + 1]``, normalised, -inf for the mask.

    Args:
        mixture: the language.
        mask_token_id: in ``0 .. K``.
        impossible: what to do with rows whose visible tokens have probability zero: see `ChainDenoiser`.

    Raises:
        ValueError: on a call, for rows of probability zero under "raise".

    Examples:
        >>> stay = torch.eye(2)
        >>> chains = [MarkovChain(torch.tensor([0.9, 0.1]), stay), MarkovChain(torch.tensor([0.1, 0.9]), stay)]
        >>> denoiser = MarkovMixture(torch.tensor([0.5, 0.5]), chains).denoiser(mask_token_id=2)
        >>> denoiser(torch.tensor([[0, 2], [2, 2]]))[:, 1].exp()
        tensor([[1.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.0000]], dtype=torch.float64)
    """

    def __init__(
        self, mixture: MarkovMixture, mask_token_id: int, *, impossible: Literal["raise", "uniform"] = "raise"
    ) -> None:
        self.mixture = mixture
        self.mask_token_id = mask_token_id
        self.impossible = impossible
        self.words = word_ids(mixture.vocab_size, mask_token_id)
        self.parts = [chain.denoiser(mask_token_id, impossible="uniform") for chain in mixture.chains]

    def __call__(self, x_t: Tensor, t: Tensor | None = None, /, **model_kwargs: Any) -> Tensor:
        log_joint_BM = self.mixture.log_joint(x_t, self.mask_token_id)
        impossible_B = ~log_joint_BM.isfinite().any(1)
        if self.impossible == "raise" and bool(impossible_B.any()):
            row = int(impossible_B.nonzero()[0])
            raise ValueError(
                f"the visible tokens of row {row} have probability zero in every mode: {x_t[row].tolist()}; pass "
                'impossible="uniform" to get a uniform answer'
            )
        weight_BM = self.mixture.responsibilities(x_t, self.mask_token_id)
        probability = torch.zeros((), dtype=torch.float64)
        for mode, part in enumerate(self.parts):
            words_BLK = part(x_t)[..., self.words].exp()
            probability = probability + weight_BM[:, mode, None, None] * words_BLK
        return logits_of_words(probability.log(), self.mask_token_id)


def modal_mixture(
    num_modes: int = 8, vocab_size: int = 5, *, seed: int = 13, concentration: float = 0.1
) -> MarkovMixture:
    """A mixture of peaked random chains whose supports hardly meet; the largest weight is three times the smallest.

    With the defaults and length 6 a sequence names its mode with probability 0.998, and the entropy is 4.68 nats.

    Args:
        num_modes: M.
        vocab_size: K.
        seed: of chains.
        concentration: of the Dirichlet that the chains are drawn from; small gives peaked chains.

    Examples:
        >>> mixture = modal_mixture(num_modes=3, vocab_size=4)
        >>> mixture.sample(2, 6, generator=generator).shape
        torch.Size([2, 6])
    """
    check_count("num_modes", num_modes)
    generator = Generator().manual_seed(check_count("seed", seed, minimum=-(2**63)))
    weights = torch.linspace(1.0, 3.0, num_modes, dtype=torch.float64)
    return MarkovMixture(
        weights / weights.sum(), [random_chain(vocab_size, generator, concentration) for _ in range(num_modes)]
    )
