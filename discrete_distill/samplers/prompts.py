"""From lists of ids to the sequences that a sampler fills in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_count


def prompted(
    prompts: Sequence[Sequence[int]],
    length: int | Sequence[int],
    mask_token_id: int,
    *,
    suffixes: Sequence[Sequence[int]] | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``x_init`` and ``attention_mask`` of sequences that start with prompts, end with suffixes and are masks between.

    Args:
        prompts: ids of each sequence; may be empty, and of different lengths.
        length: tokens of all sequences, prompt and suffix included, or of each (a ragged batch, padded on the right).
        mask_token_id: the mask.
        suffixes: ids at the end of each sequence.
        device: of the result.

    Returns:
        int64 ``[B, L]``, and bool ``[B, L]``, true at real tokens, or None if no sequence is padded.

    Raises:
        TypeError: if an id or a length is no integer.
        ValueError: if there is no prompt, an id is negative, a length is less than 1, numbers of prompts, lengths and
            suffixes differ, or prompt and suffix do not fit; the sequence is named.
    """
    check_count("mask_token_id", mask_token_id, least=0)
    prompts = [_ids(prompt) for prompt in prompts]
    count = len(prompts)
    lengths = list(length) if isinstance(length, Sequence) else [length] * count
    endings: list[list[int]] = [[]] * count if suffixes is None else [_ids(suffix) for suffix in suffixes]
    if not count or len(lengths) != count or len(endings) != count:
        raise ValueError(
            f"one length and one suffix for every prompt is needed, and one prompt at least; got {count} prompts, "
            f"{len(lengths)} lengths, {len(endings)} suffixes"
        )
    for number, (prompt, size, ending) in enumerate(zip(prompts, lengths, endings, strict=True)):
        check_count(f"length of sequence {number}", size)
        for token in (*prompt, *ending):
            check_count(f"a token id of sequence {number}", token, least=0)
    x_init = torch.full((count, max(lengths)), mask_token_id, dtype=torch.long)
    for number, (prompt, size, ending) in enumerate(zip(prompts, lengths, endings, strict=True)):
        if len(prompt) + len(ending) > size:
            raise ValueError(
                f"sequence {number}: {len(prompt)} tokens of prompt and {len(ending)} of suffix do not fit into "
                f"{size}; shorten them, or raise the length"
            )
        x_init[number, : len(prompt)] = torch.tensor(prompt, dtype=torch.long)
        x_init[number, size - len(ending) : size] = torch.tensor(ending, dtype=torch.long)
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return x_init.to(device), None if bool(real.all()) else real.to(device)


def _ids(tokens: Any) -> list[int]:
    """Ids as a list, of a tensor too."""
    return list(tokens.tolist() if hasattr(tokens, "tolist") else tokens)
