"""From lists of ids to the sequences that a sampler fills in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
        ValueError: if there is no prompt, numbers of prompts, lengths and suffixes differ, or prompt and suffix do not
            fit; the sequence is named.
    """
    count = len(prompts)
    lengths = [length] * count if isinstance(length, int) else list(length)
    endings = [[]] * count if suffixes is None else list(suffixes)
    if not count or len(lengths) != count or len(endings) != count:
        raise ValueError(
            f"one length and one suffix for every prompt is needed, and one prompt at least; got {count} prompts, "
            f"{len(lengths)} lengths, {len(endings)} suffixes"
        )
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
