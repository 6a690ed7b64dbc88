"""Which rows of a batch a step asks about.

Coins and event times do not depend on logits, so the samplers that toss them plan all their rows before the first step:
in the loop nothing waits for the device. Where rows do depend on logits, they are either looked up (which waits) or
padded to a table whose height is known.

Shape suffixes: B batch, L length, N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows of a batch of sequences.

    Attributes:
        index: flattened positions, int64 ``[N]``, each at most once.
        sequences: which sequences hold them, int64 ``[b]``; None stands for all of the batch.
        compact: where they stand in those sequences, flattened ``[b * L]``, int64 ``[N]``.
        active: bool ``[N]``, false at padding; None where there is none.
    """

    index: Tensor
    sequences: Tensor | None
    compact: Tensor
    active: Tensor | None = None

    def __bool__(self) -> bool:
        return len(self.index) > 0


def rows_at(flags_BL: Tensor) -> Rows:
    """The rows that are flagged, ascending. On an accelerator this waits for it."""
    batch, length = flags_BL.shape
    index = flags_BL.flatten().nonzero().squeeze(1)
    has_any = flags_BL.any(1)
    sequences = has_any.nonzero().squeeze(1)
    if len(sequences) == batch:
        return Rows(index, None, index)
    place = has_any.cumsum(0) - 1
    return Rows(index, sequences, place[index // length] * length + index % length)


def padded_rows(flags_BL: Tensor, capacity: int) -> Rows:
    """The first ``capacity`` flagged rows, ascending, and padding where they are fewer: no shape depends on data."""
    flat = flags_BL.flatten()
    index = flat.logical_not().to(torch.uint8).argsort(stable=True)[:capacity]
    return Rows(index, None, index, flat[index])


def planned_rows(flags: Sequence[Tensor]) -> list[Rows]:
    """`rows_at` of every step, with one copy to the host for all of them."""
    if not flags:
        return []
    device = flags[0].device
    if device.type == "cpu":
        return [rows_at(each) for each in flags]
    return moved_rows([rows_at(each) for each in torch.stack(list(flags)).cpu()], device)


def moved_rows(rows: Sequence[Rows], device: torch.device) -> list[Rows]:
    """Planned rows (without padding) on another device, in one copy."""
    parts = [part for each in rows for part in (each.index, each.sequences, each.compact) if part is not None]
    moved = iter(moved_together(parts, device))
    return [Rows(next(moved), None if each.sequences is None else next(moved), next(moved)) for each in rows]


def moved_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Int64 tensors of one dimension on another device, in one copy."""
    if not tensors:
        return []
    return list(torch.cat(list(tensors)).to(device).split([len(each) for each in tensors]))
