"""Logits where they are needed: the one place in which one row stands for equal states.

Shape suffixes: B batch, L length, V vocabulary, N chosen positions, n positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..process import Denoiser, evaluation_mode, logits_in_parts
from ..process.denoiser import LogitsOfPart


def evaluate(
    denoiser: Denoiser,
    x_t: Tensor,
    t: Tensor,
    positions: Tensor,
    *,
    s: Tensor | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    one_state: bool = False,
    share_head: bool = False,
    largest_id: int = 0,
) -> LogitsOfPart:
    """Call the denoiser once; in one state, on the first row alone.

    Args:
        denoiser: any `Denoiser`.
        x_t: int64 ``[B, L]``.
        t: ``[B]``.
        positions: of the flattened batch, int64 ``[N]``.
        s: ``[B]``, where the step ends, for denoisers that accept it.
        model_kwargs: passed to the denoiser, the attention mask included.
        one_state: the rows hold the same tokens at the same times. Rows with keyword arguments are never taken for
            equal.
        share_head: in one state, run the head once on each of the L positions and hold these logits ``[L, V]``;
            otherwise it runs on the positions of a part when that part is read.
        largest_id: of the tokens and the mask; the vocabulary must hold it.

    Returns:
        ``logits(part: slice) -> [n, V]``, raw.
    """
    if not one_state or model_kwargs:
        return logits_in_parts(denoiser, x_t, t, positions, s=s, model_kwargs=model_kwargs, largest_id=largest_id)
    places = positions % x_t.shape[1]
    needed = torch.arange(x_t.shape[1], device=x_t.device) if share_head else places
    first_s = None if s is None else s[:1]
    logits_of = logits_in_parts(denoiser, x_t[:1], t[:1], needed, s=first_s, largest_id=largest_id)
    if not share_head:
        return logits_of
    logits_LV = logits_of(slice(None))
    return lambda part: logits_LV[places[part]]


@torch.no_grad()
def read_logits(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, positions: Tensor, model_kwargs: Mapping[str, Any] | None = None
) -> Tensor:
    """Read raw logits ``[N, V]`` of a network that is not trained here: in evaluation mode, without a graph.

    Whether all rows are in one state is looked up, which waits for the device.

    Args:
        denoiser: any `Denoiser`, such as a teacher.
        x_t: int64 ``[B, L]``.
        t: ``[B]``.
        positions: of the flattened batch, int64 ``[N]``.
        model_kwargs: passed to the denoiser, the attention mask included.
    """
    one_state = not model_kwargs and bool((x_t == x_t[:1]).all()) and bool((t == t[0]).all())
    with evaluation_mode(denoiser):
        logits_of = evaluate(
            denoiser, x_t, t, positions, model_kwargs=model_kwargs, one_state=one_state, share_head=True
        )
        return logits_of(slice(None))


def guided(conditional_nV: Tensor, unconditional_nV: Tensor, scale: float) -> Tensor:
    """``scale * conditional + (1 - scale) * unconditional``, in fp32; what the condition forbids stays forbidden."""
    conditional_nV, unconditional_nV = conditional_nV.float(), unconditional_nV.float()
    mixed = scale * conditional_nV + (1.0 - scale) * unconditional_nV
    return torch.where(conditional_nV.isneginf(), conditional_nV, mixed)
