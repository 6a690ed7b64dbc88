"""Remasked states: the outcome of a step with a part of it hidden again.

Shape suffixes: B batch, L length, N chosen positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .. import draws
from ..process import MaskedDiffusion
from .rollout import TrajectoryStep


@dataclass
class RemaskedState:
    """The outcome of a step with a part of what it revealed hidden again, the input of networks that predict it.

    A position that was masked at ``t`` is hidden with probability ``h`` whether or not it was revealed, so given the
    state ``x_t`` all hidden positions are alike, and a sum over them weighted by ``q / h``, with ``q`` the step's
    probability of revealing, estimates the sum over revealed positions.

    Attributes:
        x_t: int64 ``[B, L]``.
        t: its time by the number of masks, ``[B]``.
        positions: flattened hidden positions, int64 ``[N]``.
        index: where each stands in the step's own ``positions``, int64 ``[N]``.
        weight: ``q / h``, ``[N]``.
    """

    x_t: Tensor
    t: Tensor
    positions: Tensor
    index: Tensor
    weight: Tensor


def remask(
    process: MaskedDiffusion,
    step: TrajectoryStep,
    generation_mask: Tensor,
    *,
    mask_ratio: float = 0.5,
    generator: Generator | None = None,
) -> RemaskedState:
    """Hide again what a step revealed, until a fraction of at least ``mask_ratio`` of its masked positions is hidden.

    With ``q`` the step's probability of revealing, ``h = max(1 - q, mask_ratio)``: what is still masked stays so, and
    each revealed position is hidden again with probability ``(h - (1 - q)) / q``.

    Args:
        process: mask and schedule.
        step: of a path whose logits were kept at all masked positions.
        generation_mask: bool ``[B, L]``, true at positions that may be hidden.
        mask_ratio: minimum fraction hidden, in ``(0, 1]``. The last step leaves no mask, so 0 would remask nothing.
        generator: source of randomness.

    Raises:
        ValueError: if ``mask_ratio`` is outside ``(0, 1]``, or the path kept only what each step revealed.
    """
    if not 0.0 < mask_ratio <= 1.0:
        raise ValueError(f"mask_ratio must lie in (0, 1], got {mask_ratio}")
    reveal_B = process.unmask_probability(step.t, step.s)
    hidden_B = (1.0 - reveal_B).clamp(min=mask_ratio)
    again_B = ((hidden_B - (1.0 - reveal_B)) / reveal_B.clamp(min=1e-6)).clamp(0.0, 1.0)
    unmask_draws = draws.rand(step.x_t.shape, device=step.x_t.device, generator=generator) < again_B[:, None]
    was_masked = process.is_masked(step.x_t, generation_mask)
    if not step.has_all_masked and len(step.positions) != int(was_masked.sum()):
        raise ValueError('a remasked state needs logits at all masked positions; draw the path with positions="masked"')
    hide = was_masked & (process.is_masked(step.x_s) | unmask_draws)
    positions = hide.flatten().nonzero().squeeze(1)
    x_t = torch.where(hide, process.mask_token_id, step.x_s)
    t = process.time_of_count(hide.sum(1), process.num_generated(x_t, generation_mask))
    weight = (reveal_B / hidden_B)[positions // x_t.shape[1]]
    return RemaskedState(x_t, t, positions, torch.searchsorted(step.positions, positions), weight)
