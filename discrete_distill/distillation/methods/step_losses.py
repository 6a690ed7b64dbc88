"""What the student's loss reads of one step of a path.

Shape suffixes: R revealed rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...process import Denoiser, MaskedDiffusion
from ...samplers.logits import read_logits
from ..divergence import DivergenceKind, token_divergence
from ..rollout import Rollout, TrajectoryStep


@dataclass(frozen=True, kw_only=True)
class Regularization:
    """What is added to the student's surrogate along its path; nothing by default.

    Args:
        kl_coefficient: weight of the KL between student and teacher.
        kl_kind: forward, reverse, jeffreys, js or tv.
        kl_beta: mixes the two directions.
        entropy_coefficient: weight of the student's entropy, a bonus.
    """

    kl_coefficient: float = 0.0
    kl_kind: DivergenceKind = "jeffreys"
    kl_beta: float = 0.5
    entropy_coefficient: float = 0.0


class StepLosses(NamedTuple):
    """At the ``R`` positions that a step revealed: ``log p`` of the token, entropy, divergence from the teacher."""

    log_prob: Tensor
    entropy: Tensor
    divergence: Tensor


def step_losses(
    process: MaskedDiffusion, regularization: Regularization, teacher: Denoiser, rollout: Rollout, step: TrajectoryStep
) -> StepLosses:
    """Log-probability, entropy and divergence from the teacher (0 where ``kl_coefficient`` is).

    Args:
        process: names the mask.
        regularization: which divergence.
        teacher: read in evaluation mode, without a graph.
        rollout: that the step belongs to.
        step: one of its steps.
    """
    if not regularization.kl_coefficient:
        out = step.losses()
        return StepLosses(out.log_prob, out.entropy, torch.zeros_like(out.entropy))
    teacher_RV = read_logits(teacher, step.x_t, step.t, step.revealed_rows(), rollout.denoiser_kwargs())
    out = step.losses(teacher_RV)
    assert out.forward_kl is not None
    assert out.reverse_kl is not None
    mix = {"forward": 1.0, "reverse": 0.0, "jeffreys": regularization.kl_beta}.get(regularization.kl_kind)
    if mix is None:
        divergence = token_divergence(
            step.revealed_logits(),
            teacher_RV,
            kind=regularization.kl_kind,
            beta=regularization.kl_beta,
            mask_token_id=process.mask_token_id,
        )
    else:
        divergence = mix * out.forward_kl + (1.0 - mix) * out.reverse_kl
    return StepLosses(out.log_prob, out.entropy, divergence)
