"""Token ids that are never predicted beside the mask, such as the special tokens of a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..checks import check_count


def checked_forbidden_ids(ids: Any, mask_token_id: int) -> tuple[int, ...]:
    """Sort and check a sequence of token ids.

    Returns:
        The distinct ids, ascending.
    """
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise TypeError(f"forbidden_token_ids must be a sequence of token ids, got {ids!r}")
    distinct = sorted({check_count("an id of forbidden_token_ids", each, minimum=0) for each in ids})
    if mask_token_id in distinct:
        raise ValueError(
            f"forbidden_token_ids holds the mask token {mask_token_id}, which is never drawn anyway; leave it out"
        )
    return tuple(distinct)


def without_ids(logits: Tensor, ids: tuple[int, ...]) -> Tensor:
    """Copy logits ``[..., V]`` with -inf at ascending ``ids``; the same tensor if there are none.

    Neighbouring ids are filled as one slice: no index is moved to the device.
    """
    if not ids:
        return logits
    if ids[-1] >= logits.shape[-1]:
        raise ValueError(
            f"forbidden_token_ids holds {ids[-1]}, and the logits have {logits.shape[-1]} classes; leave it out"
        )
    filled = logits.clone()
    first = ids[0]
    for place, each in enumerate(ids):
        if place + 1 == len(ids) or ids[place + 1] != each + 1:
            filled[..., first : each + 1] = float("-inf")
            first = ids[place + 1] if place + 1 < len(ids) else each
    return filled
