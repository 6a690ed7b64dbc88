"""Positions of a batch whose logits a step needs.

Unmasking draws and event times do not depend on logits, so the samplers that draw them plan all positions before the
first step, and no step waits for the device. Positions that depend on logits are either looked up (which waits) or
padded to a fixed number.

Shape suffixes: B batch, L length, N positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Positions:
    """Some positions of a batch of sequences.

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


def positions_at(flags_BL: Tensor) -> Positions:
    """The positions that are flagged, ascending. On an accelerator this waits for it."""
    batch, length = flags_BL.shape
    index = flags_BL.flatten().nonzero().squeeze(1)
    has_any = flags_BL.any(1)
    sequences = has_any.nonzero().squeeze(1)
    if len(sequences) == batch:
        return Positions(index, None, index)
    place = has_any.cumsum(0) - 1
    return Positions(index, sequences, place[index // length] * length + index % length)


def padded_positions(flags_BL: Tensor, capacity: int) -> Positions:
    """The first ``capacity`` flagged positions, ascending, padded where there are fewer: no shape depends on data."""
    flat = flags_BL.flatten()
    index = flat.logical_not().to(torch.uint8).argsort(stable=True)[:capacity]
    return Positions(index, None, index, flat[index])


def planned_positions(flags: Sequence[Tensor]) -> list[Positions]:
    """`positions_at` of every step, with one copy to the host for all of them."""
    if not flags:
        return []
    device = flags[0].device
    if device.type == "cpu":
        return [positions_at(each) for each in flags]
    return moved_positions([positions_at(each) for each in torch.stack(list(flags)).cpu()], device)


def moved_positions(positions: Sequence[Positions], device: torch.device) -> list[Positions]:
    """Planned positions (without padding) on another device, in one copy."""
    parts = [part for each in positions for part in (each.index, each.sequences, each.compact) if part is not None]
    moved = iter(moved_together(parts, device))
    return [Positions(next(moved), None if each.sequences is None else next(moved), next(moved)) for each in positions]


def moved_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Int64 tensors of one dimension on another device, in one copy."""
    if not tensors:
        return []
    return list(torch.cat(list(tensors)).to(device).split([len(each) for each in tensors]))
