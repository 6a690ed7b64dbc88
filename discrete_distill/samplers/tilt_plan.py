"""Positions whose logits the steps of a guided sampler need, planned from the unmasking draws.

Shape suffixes: B batch, L length, K steps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .grid import unmask_flags
from .positions import Positions, moved_positions, moved_together, positions_at
from .state import SamplerState
from .strided import Stride


class TiltGroup(NamedTuple):
    """Some sequences of a tilted step, whose logits are held at once.

    Attributes:
        part: their positions among all masked positions of the step.
        sequences: their numbers in the batch, int64 ``[b]``.
        compact: where these positions stand in these sequences, flattened ``[b * L]``.
        places: which of these positions the step reveals.
    """

    part: slice
    sequences: Tensor
    compact: Tensor
    places: Tensor


class TiltPlan:
    """Positions of every step.

    Args:
        state: of this call.
        times: of the grid.
        tilted_steps: how many of the first steps tilt.
        group_positions: masked positions in a group, unless a single sequence has more.
        stride: of the strided order.

    Attributes:
        revealed: what each step reveals, and at last what no step does.
        masked: of each tilted step, all masked positions of the sequences that reveal any: what a tilt depends on.
        groups: of each tilted step, the same in groups of whole sequences.
    """

    def __init__(
        self,
        state: SamplerState,
        times: list[float],
        tilted_steps: int,
        group_positions: int,
        stride: Stride | None = None,
    ) -> None:
        flags, left = unmask_flags(state, torch.tensor(times, device=state.tokens.device), stride=stride)
        device = left.device
        flags_KBL = torch.stack([*flags, left]).cpu()
        still_BL = flags_KBL.any(0)
        revealed, masked = [positions_at(each) for each in flags_KBL], []
        planned: list[list[TiltGroup]] = []
        for revealed_BL in flags_KBL[:tilted_steps]:
            asked_BL = still_BL & revealed_BL.any(1, keepdim=True)
            masked.append(positions_at(asked_BL))
            planned.append(_groups(asked_BL, revealed_BL, group_positions))
            still_BL = still_BL & ~revealed_BL
        moved = moved_positions([*revealed, *masked], device)
        self.revealed: list[Positions] = moved[: len(revealed)]
        self.masked: list[Positions] = moved[len(revealed) :]
        tensors = iter(moved_together([part for groups in planned for each in groups for part in each[1:]], device))
        self.groups = [
            [TiltGroup(each.part, next(tensors), next(tensors), next(tensors)) for each in groups] for groups in planned
        ]


def _groups(asked_BL: Tensor, revealed_BL: Tensor, group_positions: int) -> list[TiltGroup]:
    groups: list[TiltGroup] = []
    held: list[int] = []
    start = size = 0
    counts = asked_BL.sum(1).tolist()
    for sequence in [number for number, count in enumerate(counts) if count]:
        if held and size + counts[sequence] > group_positions:
            groups.append(_group(asked_BL, revealed_BL, held, start))
            start, size, held = start + size, 0, []
        held.append(sequence)
        size += counts[sequence]
    return [*groups, _group(asked_BL, revealed_BL, held, start)] if held else groups


def _group(asked_BL: Tensor, revealed_BL: Tensor, held: list[int], start: int) -> TiltGroup:
    sequences = torch.tensor(held)
    compact = asked_BL[sequences].flatten().nonzero().squeeze(1)
    places = revealed_BL[sequences].flatten()[compact].nonzero().squeeze(1)
    return TiltGroup(slice(start, start + len(compact)), sequences, compact, places)
