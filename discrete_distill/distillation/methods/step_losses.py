"""What the student's loss reads of one step of a path.

Shape suffixes: R revealed positions, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...process import Denoiser, MaskedDiffusion
from ...samplers.logits import read_logits
from ..divergence import token_divergence
from ..rollout import Rollout, TrajectoryStep
from .options import PathKL


class StepLosses(NamedTuple):
    """At the ``R`` positions that a step revealed: ``log p`` of the token, entropy, divergence from the teacher."""

    log_prob: Tensor
    entropy: Tensor
    divergence: Tensor


def step_losses(
    process: MaskedDiffusion, kl: PathKL, teacher: Denoiser, rollout: Rollout, step: TrajectoryStep
) -> StepLosses:
    """Log-probability, entropy and divergence from the teacher (0 where its coefficient is)."""
    if not kl.coefficient:
        out = step.losses()
        return StepLosses(out.log_prob, out.entropy, torch.zeros_like(out.entropy))
    teacher_RV = read_logits(teacher, step.x_t, step.t, step.revealed_positions(), rollout.denoiser_kwargs())
    # The path's distribution is compared with the teacher's at the same temperature, without the same ids.
    teacher_RV = teacher_RV if step.evaluation is None else step.evaluation.distribution(teacher_RV)
    out = step.losses(teacher_RV)
    assert out.forward_kl is not None
    assert out.reverse_kl is not None
    mix = {"forward": 1.0, "reverse": 0.0, "jeffreys": kl.beta}.get(kl.kind)
    if mix is None:
        divergence = token_divergence(
            step.revealed_logits(), teacher_RV, kind=kl.kind, beta=kl.beta, mask_token_id=process.mask_token_id
        )
    else:
        divergence = mix * out.forward_kl + (1.0 - mix) * out.reverse_kl
    return StepLosses(out.log_prob, out.entropy, divergence)
