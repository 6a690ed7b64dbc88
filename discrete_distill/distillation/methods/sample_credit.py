"""Credit to the samples that were drawn: the integral KL's score function, with the method's regularisers.

Shape suffixes: B batch, L length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from ...process import Denoiser, MaskedDiffusion
from ..divergence import SampleScores, ScoreFunctionIntegralKL
from ..rollout import Rollout
from .options import Regularization
from .output import Credit, LogRatioOutput, StepOutput
from .path_metrics import path_metrics
from .reward_metrics import reward_metrics
from .step_losses import step_losses


@dataclass(frozen=True)
class SampleCredit:
    """The student's loss, in two halves: scores of its samples, and the gradient of their paths.

    Args:
        process: names the mask.
        teacher: frozen.
        estimator: of the integral KL.
        regularization: terms along the path that are added to the surrogate.
        coupled_time: corrupt samples to a time of their own path.
    """

    process: MaskedDiffusion
    teacher: Denoiser
    estimator: ScoreFunctionIntegralKL
    regularization: Regularization = field(default_factory=Regularization)
    coupled_time: bool = False

    def score(
        self, rollout: Rollout, log_ratio_output: LogRatioOutput | None, generator: Generator | None
    ) -> SampleScores:
        """Log-ratios of a rollout's samples; its logits are not read."""
        sequences, loss_mask = rollout.judged()
        given: dict[str, Any] = {"group_size": rollout.group_size, "generation_mask": loss_mask}
        if log_ratio_output is not None:
            return self.estimator.score_of(log_ratio_output.log_ratio, log_ratio_output.t, **given)
        return self.estimator.score(
            sequences,
            t=own_time(rollout) if self.coupled_time else None,
            generator=generator,
            s=rollout.last_time,
            **given,
            model_kwargs=rollout.denoiser_kwargs(),
        )

    def student_loss(
        self,
        rollout: Rollout,
        credit: Credit | None,
        log_ratio_output: LogRatioOutput | None,
        generator: Generator | None,
        num_tokens: Tensor | float,
    ) -> StepOutput:
        """The surrogate, with the regularisers.

        Args:
            rollout: paths of the student, with their graph.
            credit: of its samples; if None, the rollout is the whole batch and is scored here.
            log_ratio_output: as for `score`.
            generator: source of randomness.
            num_tokens: what sums over generated tokens are divided by.

        Raises:
            ValueError: if a log-probability of the path, or a reward, is not finite.
        """
        path_kl, entropy_coefficient = self.regularization.path_kl, self.regularization.entropy_coefficient
        steps = [(step, step_losses(self.process, path_kl, self.teacher, rollout, step)) for step in rollout.steps]
        token_log_probs = torch.stack([step.scatter_to_sequence(each.log_prob) for step, each in steps]).sum(0)
        rollout.check_log_probs(token_log_probs.detach())
        token_log_probs = rollout.counted(token_log_probs)
        if credit is None:
            scores = self.score(rollout, log_ratio_output, generator)
            credit = Credit(scores, self.estimator.advantages([scores])[0])
        out = self.estimator.surrogate(token_log_probs, *credit)
        # The surrogate is a mean over sequences.
        loss = out.loss * len(token_log_probs) / num_tokens
        entropy = rollout.sum_counted([each.entropy for _, each in steps]) / num_tokens
        metrics = reward_metrics(self.estimator, rollout, out) | {"entropy": entropy.detach()}
        metrics |= path_metrics(rollout, [each.entropy for _, each in steps])
        if path_kl.coefficient:
            divergence = rollout.sum_counted([each.divergence for _, each in steps]) / num_tokens
            loss = loss + path_kl.coefficient * divergence
            metrics["teacher_divergence"] = divergence.detach()
        if entropy_coefficient:
            loss = loss - entropy_coefficient * entropy
        return StepOutput(loss, metrics)


def own_time(rollout: Rollout) -> Tensor | None:
    """Time of an intermediate state of the path, ``[B]``; None of a path of one step. It has no intermediate time:
    corrupted to its tau, 1, nothing could be distinguished."""
    return rollout.tau if len(rollout.steps) > 1 else None
