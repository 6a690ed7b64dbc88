"""Credit over the whole vocabulary at every step of a path: every token is scored, none is drawn.

What a token does to the steps after its own is ignored; see `vocabulary_cost`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ...process import Denoiser, MaskedDiffusion, evaluation_mode, logits_at
from ...samplers.logits import read_logits
from ..divergence import difference_of_logs, token_divergence, vocabulary_cost
from ..remasked_state import RemaskedState, remask
from ..rollout import Rollout, TrajectoryStep
from .config import DiDiInstructConfig
from .options import PathRatio, VocabularyCredit
from .output import StepOutput
from .path_metrics import path_metrics


@dataclass(frozen=True)
class VocabularyLosses:
    """The losses of student and auxiliary denoiser with credit over the vocabulary.

    Args:
        process: names the mask.
        config: of the method, whose credit is a `VocabularyCredit`.
        teacher: frozen.
        auxiliary: fitted to the student, or None where the distribution of the path itself is taken.
    """

    process: MaskedDiffusion
    config: DiDiInstructConfig
    teacher: Denoiser
    auxiliary: Denoiser | None

    def auxiliary_loss(self, rollout: Rollout, generator: Generator | None, num_tokens: Tensor | float) -> Tensor:
        """Cross-entropy with the student's own probabilities at the hidden positions of every step, nats per token.

        Soft targets: ``q(v | z') = E[p_student(v | x_t) | z']``."""
        total = torch.zeros((), device=rollout.sequences.device)
        for step in rollout.steps:
            remasked = self._remask(rollout, step, generator)
            target_NV = self.process.masked_log_probs(step.logits_NV.detach()[remasked.index])
            distribution_NV = self._auxiliary_log_probs(step, remasked, rollout.denoiser_kwargs())
            total = total + (remasked.weight * token_divergence(distribution_NV, target_NV, kind="forward")).sum()
        return total / num_tokens

    def student_loss(self, rollout: Rollout, generator: Generator | None, num_tokens: Tensor | float) -> StepOutput:
        """The surrogate, with the regularisers; teacher and auxiliary are read in evaluation mode.

        Raises:
            ValueError: if the cost of a position is not finite: names step, sequence and position.
        """
        kwargs, clip = rollout.denoiser_kwargs(), self.config.reward_clip
        kl, entropy_coefficient = self.config.regularization.path_kl, self.config.regularization.entropy_coefficient
        own_distribution = isinstance(self.config.log_ratio, PathRatio)
        cost, divergence = torch.zeros(2, device=rollout.sequences.device).unbind()
        costs: list[tuple[Tensor, Tensor]] = []
        entropies: list[Tensor] = []
        for step in rollout.steps:
            remasked = self._remask(rollout, step, generator)
            student_NV = self.process.masked_log_probs(step.logits_NV[remasked.index])
            with torch.no_grad():
                teacher_logits_NV = read_logits(self.teacher, remasked.x_t, remasked.t, remasked.positions, kwargs)
                teacher_NV = self.process.masked_log_probs(teacher_logits_NV)
                with evaluation_mode(self.auxiliary):
                    distribution_NV = (
                        student_NV if own_distribution else self._auxiliary_log_probs(step, remasked, kwargs)
                    )
                ratio_NV = difference_of_logs(distribution_NV, teacher_NV).clamp(-clip, clip)
            cost_N = vocabulary_cost(student_NV, ratio_NV)
            costs.append((remasked.positions, cost_N.detach()))
            cost = cost + (remasked.weight * cost_N).sum()
            if kl.coefficient:
                divergence_N = token_divergence(student_NV, teacher_NV, kind=kl.kind, beta=kl.beta)
                divergence = divergence + (remasked.weight * divergence_N).sum()
            entropies.append(step.losses().entropy)
        _check_costs(costs, rollout.sequences.shape[1])
        entropy = rollout.sum_counted(entropies)
        cost, divergence, entropy = (total / num_tokens for total in (cost, divergence, entropy))
        loss = cost + kl.coefficient * divergence - entropy_coefficient * entropy
        metrics = {"log_ratio": cost.detach(), "entropy": entropy.detach()}
        metrics |= path_metrics(rollout, entropies)
        if kl.coefficient:
            metrics["teacher_divergence"] = divergence.detach()
        return StepOutput(loss, metrics)

    def _remask(self, rollout: Rollout, step: TrajectoryStep, generator: Generator | None) -> RemaskedState:
        credit = self.config.credit
        assert isinstance(credit, VocabularyCredit)
        return remask(self.process, step, rollout.loss_mask, mask_ratio=credit.mask_ratio, generator=generator)

    def _auxiliary_log_probs(self, step: TrajectoryStep, remasked: RemaskedState, kwargs: dict[str, Any]) -> Tensor:
        assert self.auxiliary is not None
        # The auxiliary is passed the step that made the state: which tokens are new depends on it.
        logits = logits_at(self.auxiliary, remasked.x_t, step.t, remasked.positions, s=step.s, model_kwargs=kwargs)
        return self.process.masked_log_probs(logits)


def _check_costs(costs: list[tuple[Tensor, Tensor]], length: int) -> None:
    """Positions and costs of every step; waits for the device once."""
    if bool(torch.cat([cost_N for _, cost_N in costs]).isfinite().all()):
        return
    for index, (positions, cost_N) in enumerate(costs):
        wrong = positions[~cost_N.isfinite()]
        if len(wrong):
            sequence, position = divmod(int(wrong[0]), length)
            raise ValueError(
                f"step {index}, sequence {sequence}, position {position}: the student's cost is not finite; look for "
                "NaN in student, teacher and auxiliary, and for tokens that the teacher rules out, or set reward_clip"
            )
