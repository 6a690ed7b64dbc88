"""Plan of a student path: positions whose logits each step needs, and positions that it reveals.

Shape suffixes: B batch, L length, V vocabulary, N chosen positions, R revealed positions, K steps.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from ..checks import check_choice
from ..process import MaskedDiffusion
from ..samplers.counts import dealt_out, hidden_shares
from ..samplers.grid import unmask_flags
from ..samplers.order import Order, certainty, rank_of
from ..samplers.positions import Positions, positions_at
from ..samplers.state import SamplerState
from ..samplers.strided import Stride

PathOrder = Literal["random", "strided", "margin", "entropy"]
BY_CERTAINTY = ("margin", "entropy")


class PlannedStep(NamedTuple):
    """Positions of a step of a path, known before any token of it is drawn."""

    positions: Positions
    """Positions whose logits the step computes, ascending."""
    revealed: Tensor
    """Bool ``[N]``: those that it reveals; all of them where an order decides."""
    place: Tensor | None
    """Where these stand in ``positions``, int64 ``[R]``; None where it was not looked up."""
    one_time: bool
    """Whether all sequences take the step between the same times."""
    count_B: Tensor | None = None
    """How many the step reveals in each sequence, int64 ``[B]``, where an order decides which."""


def check_path_order(order: str, *, branching: bool) -> None:
    """Refuse orders along which a path has no probability that can be computed."""
    if order == "confidence":
        raise ValueError(
            'order="confidence" ranks positions by the tokens that were drawn there, those thrown away included, so '
            'that the probability of a path is a sum over all of these; take "margin" or "entropy"'
        )
    check_choice("order", order, get_args(PathOrder))
    if order in BY_CERTAINTY and branching:
        raise ValueError(
            f"rows of a branching path share their unmasking draws, and order={order!r} has none; take one"
        )


def true_places(flags_N: Tensor, count: int) -> Tensor:
    """``nonzero`` of flags of which ``count`` are known to be true, int64 ``[count]``: the device is not waited for."""
    return flags_N.logical_not().to(torch.uint8).sort(stable=True).indices[:count]


def plan_by_draws(
    state: SamplerState,
    times_KB: Tensor,
    first: int,
    positions: Literal["revealed", "masked"],
    stride: Stride | None = None,
) -> list[PlannedStep]:
    """Positions of all steps from number ``first`` on: they depend on unmasking draws and not on tokens, so that the
    host waits for the device once, for their numbers.

    Args:
        state: before the first of these steps.
        times_KB: their times, ``[K + 1, B]``.
        first: number of the first of them.
        positions: whether logits of "revealed" or of all "masked" positions are computed.
        stride: of the strided order.
    """
    if len(times_KB) < 2:
        return []
    masked, length = state.masked(), state.tokens.shape[1]
    reveals, _ = unmask_flags(state, times_KB, first=first, stride=stride)
    kept: list[Tensor] = []
    for flags in reveals:
        kept.append(masked if positions == "masked" else flags)
        masked = masked & ~flags
    counts_KB = torch.stack(kept).sum(2)
    one_time_K = _one_time(times_KB)
    revealed_K = torch.stack(reveals).sum((1, 2))
    numbers = torch.stack((counts_KB.sum(1), revealed_K, (counts_KB > 0).sum(1), one_time_K.long())).tolist()
    plan = []
    for index, (num_kept, num_revealed, num_sequences, one_time) in enumerate(zip(*numbers, strict=True)):
        chosen = true_places(kept[index].flatten(), num_kept)
        sequences = true_places(counts_KB[index] > 0, num_sequences)
        compact = torch.searchsorted(sequences, chosen // length) * length + chosen % length
        revealed = reveals[index].flatten()[chosen]
        needed = Positions(chosen, sequences, compact)
        plan.append(PlannedStep(needed, revealed, true_places(revealed, num_revealed), bool(one_time)))
    return plan


def plan_by_order(state: SamplerState, count_B: Tensor, times_2B: Tensor) -> PlannedStep:
    """One step that reveals ``count_B`` positions of each sequence: logits of all masked positions decide which."""
    positions = positions_at(state.masked() & (count_B > 0)[:, None])
    every = torch.ones_like(positions.index, dtype=torch.bool)
    return PlannedStep(positions, every, None, bool(_one_time(times_2B)), count_B)


def reveal_counts(process: MaskedDiffusion, times_KB: Tensor, masks_B: Tensor) -> Tensor:
    """How many masks each step reveals where an order decides which: as in `ConfidenceSampler`, ``[K, B]``.

    Args:
        process: mask and schedule.
        times_KB: ``[K + 1, B]``.
        masks_B: masks of each sequence at the start, int64 ``[B]``.
    """
    grids = list(zip(map(tuple, times_KB.T.tolist()), masks_B.tolist(), strict=True))
    left = {each: dealt_out(hidden_shares(process, each[0]), each[1]) for each in set(grids)}
    left_KB = torch.tensor([left[each] for each in grids], device=times_KB.device).T
    return left_KB[:-1] - left_KB[1:]


def most_certain(
    order: PathOrder, state: SamplerState, logits_NV: Tensor, positions: Positions, count_B: Tensor
) -> Tensor:
    """Find the positions that a step reveals, those of which the logits are surest, whatever is drawn there.

    Args:
        order: "margin" or "entropy"; see `certainty`.
        state: before the step.
        logits_NV: of the distribution that tokens are drawn from.
        positions: positions of the logits.
        count_B: number of positions to reveal in each sequence.

    Returns:
        bool ``[N]``.
    """
    distribution = state.token_distribution
    best = distribution.most_likely(logits_NV, return_entropy=order == "entropy")
    scores_N = certainty(cast(Order, order), distribution)(logits_NV, best, slice(None))
    # Other positions score -inf; a position with bad logits does too, and must not come after them.
    scores_N = torch.nan_to_num(scores_N, nan=-1e30, neginf=-1e30)
    scores_BL = state.scatter(positions, scores_N, float("-inf"))
    return (rank_of(scores_BL) < count_B[:, None]).flatten()[positions.index]


def _one_time(times_KB: Tensor) -> Tensor:
    t, s = times_KB[:-1], times_KB[1:]
    return ((t == t[:, :1]) & (s == s[:, :1])).all(1)
