"""Forward-backward over a batch of partly observed Markov sequences (Rabiner 1989, scaled recursions).

Shape suffixes: B batch, L length, K words.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .vocabulary import check_ids, check_mask_token_id, mask_last


class ForwardMessages(NamedTuple):
    """The forward pass.

    Attributes:
        predicted: ``[B, L, K]``, distribution of each word given the evidence before it.
        log_normaliser: ``[B]``, log-probability of all evidence in nats, -inf if it is impossible.
    """

    predicted: Tensor
    log_normaliser: Tensor


def evidence_of_tokens(x_t: Tensor, mask_token_id: int, vocab_size: int) -> Tensor:
    """Likelihood of each word: one-hot where a token is visible, all ones at a mask; fp64 ``[B, L, K]``.

    Raises:
        ValueError: if ``x_t`` is not ``[B, L]`` of ids in ``0 .. K``, or the mask is not such an id.
    """
    check_mask_token_id(mask_token_id, vocab_size)
    check_ids(x_t, vocab_size + 1, "token ids")
    words = torch.arange(vocab_size, device=x_t.device)
    matches = mask_last(x_t, mask_token_id, vocab_size)[..., None] == words
    return (matches | (x_t == mask_token_id)[..., None]).double()


def forward_messages(initial: Tensor, transition: Tensor, evidence_BLK: Tensor) -> ForwardMessages:
    """``predicted_i = filtered_{i-1} T`` and ``filtered_i ~ predicted_i * evidence_i``, normalised."""
    predicted = initial.expand(evidence_BLK.shape[0], -1)
    rows, log_normaliser = [], torch.zeros_like(evidence_BLK[:, 0, 0])
    for evidence_BK in evidence_BLK.unbind(1):
        rows.append(predicted)
        filtered = predicted * evidence_BK
        scale = filtered.sum(1)
        log_normaliser = log_normaliser + scale.log()
        predicted = (filtered / scale.clamp_min(torch.finfo(scale.dtype).tiny)[:, None]) @ transition
    return ForwardMessages(torch.stack(rows, 1), log_normaliser)


def backward_messages(transition: Tensor, evidence_BLK: Tensor) -> Tensor:
    """Likelihood of the evidence after each position given its word, scaled to maximum 1: ``[B, L, K]``."""
    message = torch.ones_like(evidence_BLK[:, 0])
    rows = [message]
    for evidence_BK in evidence_BLK[:, 1:].flip(1).unbind(1):
        message = (message * evidence_BK) @ transition.T
        scale = message.amax(1, keepdim=True)
        message = message / scale.clamp_min(torch.finfo(scale.dtype).tiny)
        rows.append(message)
    return torch.stack(rows[::-1], 1)
