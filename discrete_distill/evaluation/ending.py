"""Where a sample ends: the one rule by which text after the end is left out."""

from __future__ import annotations

import torch
from torch import Tensor


def before_end(sequences_BL: Tensor, eos_token_id: int | None) -> Tensor:
    """Find the tokens that belong to the text: all up to the first end-of-text token, that token included.

    An end-of-text token in the first position starts a text (packed GPT-2 data begins so) and does not end
    it.

    Args:
        sequences_BL: token ids, int64 ``[B, L]``.
        eos_token_id: the end-of-text id; None for sequences that have no end.

    Returns:
        bool ``[B, L]``.

    Raises:
        ValueError: for another shape.

    Examples:
        >>> before_end(torch.tensor([[5, 3, 0, 7, 0]]), eos_token_id=0).tolist()
        [[True, True, True, False, False]]
    """
    if sequences_BL.dim() != 2:
        raise ValueError(f"sequences must be token ids [B, L], got shape {list(sequences_BL.shape)}")
    if eos_token_id is None:
        return torch.ones_like(sequences_BL, dtype=torch.bool)
    is_end = sequences_BL == eos_token_id
    is_end[:, :1] = False
    ends_before = is_end.cumsum(dim=1) - is_end.long()
    return ends_before == 0
