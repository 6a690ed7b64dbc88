"""Words and token ids: a language of K words lives in a vocabulary of K + 1 ids, one of them the mask.

A *word* is ``0 .. K - 1``. A *token id* lies in ``0 .. K``; the mask may be any of them, and the words keep
their order around it. With the mask at the end, ``mask_token_id = K``, words are token ids.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_mask_token_id(mask_token_id: int, vocab_size: int) -> None:
    """Raise ValueError unless the mask is one of the ``vocab_size + 1`` ids."""
    if not 0 <= mask_token_id <= vocab_size:
        raise ValueError(
            f"mask_token_id must lie in 0..{vocab_size} when the language has {vocab_size} words, got {mask_token_id}"
        )


def check_integers(what: str, ids: Tensor) -> None:
    """Raise TypeError unless ``ids`` holds integers."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"{what} must be integers, got {ids.dtype}; convert them by .long()")


def check_ids(ids: Tensor, size: int, what: str) -> None:
    """Raise ValueError unless ``ids`` is a batch ``[B, L]`` of ids in ``0 .. size - 1``, TypeError unless integers."""
    check_integers(what, ids)
    if ids.dim() != 2 or ids.shape[1] < 1:
        raise ValueError(f"{what} must have shape [batch, length], got {list(ids.shape)}")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise ValueError(f"{what} must lie in 0..{size - 1}, got values from {int(ids.min())} to {int(ids.max())}")


def tokens_of_words(words: Tensor, mask_token_id: int) -> Tensor:
    """Token ids of words: those at or above the mask move up by one. Any shape, int64.

    Examples:
        >>> tokens_of_words(torch.tensor([0, 1, 2]), mask_token_id=1).tolist()  # The mask has the id 1.
        [0, 2, 3]
    """
    check_integers("words", words)
    return words + (words >= mask_token_id).to(words.dtype)


def words_of_tokens(tokens: Tensor, mask_token_id: int) -> Tensor:
    """Inverse of `tokens_of_words`. Any shape, int64.

    Raises:
        ValueError: if a mask is among the tokens, which is no word.

    Examples:
        >>> words_of_tokens(torch.tensor([0, 2, 3]), mask_token_id=1).tolist()
        [0, 1, 2]
    """
    check_integers("tokens", tokens)
    if bool((tokens == mask_token_id).any()):
        raise ValueError(f"the tokens hold the mask, id {mask_token_id}, which is no word")
    return tokens - (tokens > mask_token_id).to(tokens.dtype)


def mask_last(tokens: Tensor, mask_token_id: int, vocab_size: int) -> Tensor:
    """Noisy token ids as words, with the mask written K."""
    words = tokens - (tokens > mask_token_id).to(tokens.dtype)
    return torch.where(tokens == mask_token_id, vocab_size, words)


def mask_at(states: Tensor, mask_token_id: int, vocab_size: int) -> Tensor:
    """Inverse of `mask_last`."""
    return torch.where(states == vocab_size, mask_token_id, tokens_of_words(states, mask_token_id))


def word_ids(vocab_size: int, mask_token_id: int, device: torch.device | str = "cpu") -> Tensor:
    """Token ids of all words in their order, int64 ``[K]``."""
    return tokens_of_words(torch.arange(vocab_size, device=device), mask_token_id)


def logits_of_words(log_probs: Tensor, mask_token_id: int) -> Tensor:
    """``[..., K]`` over words to ``[..., K + 1]`` over token ids, -inf for the mask."""
    vocab_size = log_probs.shape[-1]
    logits = log_probs.new_full((*log_probs.shape[:-1], vocab_size + 1), float("-inf"))
    return logits.index_copy(-1, word_ids(vocab_size, mask_token_id, log_probs.device), log_probs)
