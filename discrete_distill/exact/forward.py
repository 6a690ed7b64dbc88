"""The forward process on enumerated distributions: ``q(x_t, t)``, and the marginals of which it is made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from discrete_distill.process import MaskedDiffusion

from .divergences import safe_log
from .enumeration import check_distribution, check_enumerable, place_values, with_mask_at, with_mask_last
from .vocabulary import check_ids, check_mask_token_id, logits_of_words, mask_last


def forward_distribution(distribution: Tensor, process: MaskedDiffusion, t: float | Tensor) -> Tensor:
    """Distribution of the noisy tokens, ``q(x_t, t) = sum_x distribution(x) prod_i P(x_t,i | x_i)`` (arXiv 2406.07524).

    Args:
        distribution: probabilities ``[K] * L`` of clean sequences.
        process: gives ``alpha`` and the mask's id, in ``0 .. K``.
        t: one time in ``[0, 1]``.

    Returns:
        Probabilities ``[K + 1] * L``, indexed by token ids. O(L (K + 1)^L).

    Raises:
        ValueError: if ``t`` lies outside ``[0, 1]``, or there are too many states to enumerate.

    Examples:
        >>> process = MaskedDiffusion(mask_token_id=2, schedule=LinearSchedule())
        >>> forward_distribution(torch.tensor([0.8, 0.2]), process, 0.5)  # One word, hidden half of the time.
        tensor([0.4000, 0.1000, 0.5000])
    """
    time = torch.as_tensor(t, dtype=torch.float64, device=distribution.device)
    if time.dim() != 0 or not 0.0 <= float(time) <= 1.0:
        raise ValueError(f"t must be one time in [0, 1], got {t}")
    alpha = process.visible_probability(time)
    return _corrupt_axes(distribution, alpha, 1.0 - alpha, process.mask_token_id)


def visible_marginals(distribution: Tensor, mask_token_id: int) -> Tensor:
    """``P(x_i = z_i wherever x_t is visible)`` for all states ``x_t``: ``[K + 1] * L``, indexed by token ids.

    ``q(x_t, t) = alpha^visible (1 - alpha)^masked`` times this.

    Examples:
        >>> visible_marginals(torch.tensor([[0.4, 0.1], [0.2, 0.3]]), mask_token_id=2)[0]  # 00, 01 and 0_
        tensor([0.4000, 0.1000, 0.5000])
    """
    one = torch.ones((), dtype=distribution.dtype, device=distribution.device)
    return _corrupt_axes(distribution, one, one, mask_token_id)


def _corrupt_axes(distribution: Tensor, keep: Tensor, hide: Tensor, mask_token_id: int) -> Tensor:
    length, vocab_size = check_distribution(distribution)
    check_mask_token_id(mask_token_id, vocab_size)
    check_enumerable(vocab_size + 1, length, "all noisy states")
    for axis in range(length):
        distribution = torch.cat([keep * distribution, hide * distribution.sum(axis, keepdim=True)], dim=axis)
    return with_mask_at(distribution, mask_token_id)


class DistributionDenoiser:
    """The perfect denoiser of any enumerated distribution: ``log P(x_i = v | visible tokens)`` by summation.

    A `Denoiser` that needs no structure in the distribution; what an auxiliary denoiser fitted to the student's
    samples converges to. Differentiable in the distribution. ``t`` is ignored.

    Args:
        distribution: probabilities ``[K] * L``.
        mask_token_id: in ``0 .. K``.

    Raises:
        ValueError: on a call, if the tokens do not fit the distribution or have probability zero under it.

    Examples:
        >>> joint = torch.tensor([[0.4, 0.1], [0.1, 0.4]], dtype=torch.float64)  # P(x_1, x_2)
        >>> DistributionDenoiser(joint, mask_token_id=2)(torch.tensor([[0, 2]]))[0, 1].exp()
        tensor([0.8000, 0.2000, 0.0000], dtype=torch.float64)
    """

    def __init__(self, distribution: Tensor, mask_token_id: int) -> None:
        self.length, self.vocab_size = check_distribution(distribution)
        self.mask_token_id = mask_token_id
        self.mask_last_marginals = with_mask_last(visible_marginals(distribution, mask_token_id), mask_token_id)

    def __call__(self, x_t: Tensor, t: Tensor | None = None, /, **model_kwargs: Any) -> Tensor:
        check_ids(x_t, self.vocab_size + 1, "token ids")
        if x_t.shape[1] != self.length:
            raise ValueError(f"the distribution is over length {self.length}, the tokens have length {x_t.shape[1]}")
        states = mask_last(x_t, self.mask_token_id, self.vocab_size)
        places_L = place_values(self.vocab_size + 1, self.length, x_t.device)
        flat_B = (states * places_L).sum(1)
        words_K = torch.arange(self.vocab_size, device=x_t.device)
        hidden_BL1 = (states == self.vocab_size)[..., None]
        change_BLK = (words_K - states[..., None]) * places_L[:, None]
        marginals = self.mask_last_marginals.flatten()
        evidence_B11 = marginals[flat_B][:, None, None]
        if bool((evidence_B11 == 0).any()):
            row = int((evidence_B11.flatten() == 0).nonzero()[0])
            raise ValueError(f"the visible tokens of row {row} have probability zero: {x_t[row].tolist()}")
        filled_BLK = marginals[flat_B[:, None, None] + change_BLK * hidden_BL1] / evidence_B11
        carried_BLK = (states[..., None] == words_K).to(filled_BLK.dtype)
        log_probs_BLK = safe_log(torch.where(hidden_BL1, filled_BLK, carried_BLK))
        return logits_of_words(log_probs_BLK, self.mask_token_id)
