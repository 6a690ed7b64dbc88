"""DiDi-Instruct (arXiv 2509.25035): distil a masked diffusion teacher into a few-step student by an integral KL
divergence. `DistillationMethod` has the training loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from ...process import MaskedDiffusion
from ..divergence import AutoregressiveLogRatio, AuxiliaryDenoiserLogRatio, DiscriminatorLogRatio, LogRatioEstimator
from ..networks import Networks
from ..paths import IntermediateStateMatcher
from ..rollout import Rollout
from .auxiliary_fit import fit_auxiliary
from .config import DiDiInstructConfig
from .data_divergence import data_divergence
from .discriminator_fit import fit_discriminator
from .matcher_check import check_matcher
from .options import (
    AutoregressiveRatio,
    AuxiliaryRatio,
    CorruptionByTime,
    DiscriminatorRatio,
    VocabularyCredit,
    make_estimator,
)
from .output import Credit, LogRatioOutput, StepOutput
from .path_method import PathMethod, divisor
from .path_metrics import reference_agreement
from .protocol import UpdatePlan
from .sample_credit import SampleCredit
from .step_check import check_accepts_step
from .vocabulary_credit import VocabularyLosses


class DiDiInstruct(PathMethod[DiDiInstructConfig]):
    """DiDi-Instruct, published and recommended, assembled from the library's parts; see `PathMethod`.

    Args:
        networks: student, teacher, and the auxiliary or the discriminator that the log-ratio needs; see
            `make_networks`. A discriminator given together with an auxiliary is trained for guided sampling.
        process: mask and schedule.
        config: every choice.
        matcher: draws the student paths, in place of that of the configuration: paths with a temperature, an order or
            an end of sequence. Its process, with its forbidden ids, is then the method's.

    Raises:
        ValueError: if the configured log-ratio lacks its network, a network that is to be passed its step has no true
            attribute ``accepts_step``, or the matcher draws other paths than the configured credit reads.

    Examples:
        >>> config = DiDiInstructConfig.recommended(advantages={"group_size": 4})
        >>> method = DiDiInstruct(make_networks(teacher, log_ratio="auxiliary"), process, config)
        >>> rollout = method.rollout(8, 16, generator=generator)
        >>> for name in ("student", "auxiliary"):
        ...     method.loss(name, rollout, reference=data, generator=generator).loss.backward()
    """

    config_class = DiDiInstructConfig
    takes_blocks = True

    def __init__(
        self,
        networks: Networks,
        process: MaskedDiffusion,
        config: DiDiInstructConfig | None = None,
        *,
        matcher: IntermediateStateMatcher | None = None,
    ) -> None:
        config = config if config is not None else DiDiInstructConfig()
        super().__init__(networks, process, config, estimator=None, matcher=matcher)
        if matcher is None and isinstance(config.credit, VocabularyCredit):
            self.matcher = config.paths.matcher(process, positions="masked")
        check_matcher(self.matcher, config)
        self.process = self.matcher.process
        if isinstance(config.log_ratio, DiscriminatorRatio) and self.discriminator is None:
            raise ValueError(
                'a DiscriminatorRatio needs a discriminator: make_networks(teacher, log_ratio="discriminator")'
            )
        if isinstance(config.log_ratio, AuxiliaryRatio):
            if self.auxiliary is None:
                raise ValueError('an AuxiliaryRatio needs an auxiliary: make_networks(teacher, log_ratio="auxiliary")')
            if config.log_ratio.step_conditioning:
                check_accepts_step(self.auxiliary, "auxiliary", "log_ratio.step_conditioning")
        if not isinstance(config.credit, VocabularyCredit):
            self.estimator = make_estimator(
                config.credit,
                self.process,
                self._log_ratio(),
                paths=config.paths,
                advantages=config.advantages,
                reward_clip=config.reward_clip,
            )
        self.diversity = config.regularization.data_kl.control(config.log_ratio.warmup)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs in addition to its networks: the estimator's `RunningMean` and the
        `DiversityControl`, where it has them."""
        state = super().state_dict()
        return state if self.diversity is None else {**state, "diversity": self.diversity.state_dict()}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from `state_dict`.

        Raises:
            ValueError: if it is of another baseline, or lacks the state of the `DiversityControl`.
        """
        state = dict(state)
        diversity = state.pop("diversity", None)
        if (diversity is None) != (self.diversity is None):
            raise ValueError("the state is of another diversity_tolerance; set it as it was")
        if self.diversity is not None and diversity is not None:
            self.diversity.load_state_dict(diversity)
        super().load_state_dict(state)

    def _log_ratio(self) -> LogRatioEstimator:
        if isinstance(self.config.log_ratio, AutoregressiveRatio):
            if self.auxiliary is None or self.target is None:
                raise ValueError("an AutoregressiveRatio needs a target: make_networks(teacher, target=network)")
            fitted: Any = self.auxiliary
            return AutoregressiveLogRatio(self.process, fitted, self.target)
        if isinstance(self.config.log_ratio, DiscriminatorRatio):
            assert self.discriminator is not None
            return DiscriminatorLogRatio(self.process, self.discriminator)
        assert self.auxiliary is not None
        return AuxiliaryDenoiserLogRatio(self.process, self.auxiliary, self.teacher)

    @property
    def update_plan(self) -> UpdatePlan:
        """See `DiDiInstructConfig.update_plan`; the student's loss reads no reference while the weight of the KL in
        reference states is 0."""
        plan = self._with_data(self.config.update_plan(discriminator=self.discriminator is not None))
        if self._data_kl_weight():
            return plan
        return replace(plan, reads_reference=tuple(name for name in plan.reads_reference if name != "student"))

    def _data_kl_weight(self) -> float:
        return self.config.regularization.data_kl.coefficient * (
            1.0 if self.diversity is None else self.diversity.weight
        )

    def rollout(self, *sizes: Any, tokens: Tensor | None = None, **given: Any) -> Rollout:
        """See `PathMethod.rollout`; the first call along each path adds the agreement of its samples to the
        `DiversityControl`."""
        rollout = super().rollout(*sizes, tokens=tokens, **given)
        if self.diversity is not None and tokens is None and rollout.agreement is not None:
            self.diversity.add(rollout.agreement, num_steps=len(rollout.steps))
        return rollout

    def _ratio_loss(self, name: str, rollout: Rollout, reference: Tensor | None, **given: Any) -> StepOutput:
        if name == "auxiliary":
            return self.auxiliary_loss(rollout, **given)
        assert reference is not None
        return self.discriminator_loss(rollout, reference, **given)

    def discriminator_loss(
        self,
        rollout: Rollout,
        reference: Tensor,
        *,
        generator: Generator | None = None,
        num_tokens: Tensor | float | None = None,
    ) -> StepOutput:
        """Binary cross-entropy between student states and reference tokens corrupted to the same times: averaged within
        a sequence over its masked positions (all generated ones where there is no mask), then over sequences by their
        numbers of generated tokens. With ``log_ratio.reuse_logits`` it is taken without dropout, since it is the
        reward too.

        Args:
            rollout: of this step.
            reference: clean tokens of data or teacher, int64 ``[B, L]``; given positions must agree with the rollout's.
            generator: source of randomness.
            num_tokens: see `student_loss`.

        Raises:
            ValueError: if there is no discriminator or the shapes differ.
        """
        if self.discriminator is None:
            raise ValueError("this method was made without a discriminator")
        return fit_discriminator(
            self.discriminator,
            self.process,
            self.config,
            rollout,
            reference,
            num_tokens=divisor(rollout, num_tokens),
            generator=generator,
        )

    def auxiliary_loss(
        self, rollout: Rollout, *, generator: Generator | None = None, num_tokens: Tensor | float | None = None
    ) -> StepOutput:
        """Fit the auxiliary denoiser to the student.

        With credit over the vocabulary, to the student's own probabilities at the hidden positions of every step's
        remasked state (soft targets: ``q(v | z') = E[p_student(v | x_t) | z']``); otherwise to its samples, by the
        NELBO.

        Args:
            rollout: of this step.
            generator: source of randomness.
            num_tokens: see `student_loss`.

        Raises:
            ValueError: if there is no auxiliary denoiser.
        """
        if self.auxiliary is None:
            raise ValueError("this method was made without an auxiliary denoiser")
        tokens = divisor(rollout, num_tokens)
        if not isinstance(self.config.credit, VocabularyCredit):
            return fit_auxiliary(self.auxiliary, self.process, rollout, num_tokens=tokens, generator=generator)
        loss = self._vocabulary_losses().auxiliary_loss(rollout, generator, tokens)
        return StepOutput(loss, {"auxiliary_loss": loss.detach()})

    def _vocabulary_losses(self) -> VocabularyLosses:
        return VocabularyLosses(self.process, self.config, self.teacher, self.auxiliary)

    def _sample_credit(self) -> SampleCredit:
        made, credit = super()._sample_credit(), self.config.credit
        assert not isinstance(credit, VocabularyCredit)
        coupled = isinstance(credit.corruption, CorruptionByTime) and credit.corruption.coupled
        return replace(made, regularization=self.config.regularization, coupled_time=coupled)

    def _student_loss(
        self,
        rollout: Rollout,
        credit: Credit | None,
        log_ratio_output: LogRatioOutput | None,
        reference: Tensor | None,
        generator: Generator | None,
        num_tokens: Tensor | float,
    ) -> StepOutput:
        """The surrogate of the integral KL, with the regularisers.

        Raises:
            ValueError: if the reference is missing while ``data_kl`` reads it, or of another shape than the samples.
        """
        coefficient = self.config.regularization.data_kl.coefficient
        if self._data_kl_weight() and reference is None:
            raise ValueError(
                f"data_kl.coefficient = {coefficient} reads reference sequences; pass "
                "reference=: data, or samples of the teacher at many steps"
            )
        if isinstance(self.config.credit, VocabularyCredit):
            out = self._vocabulary_losses().student_loss(rollout, generator, num_tokens)
        else:
            out = super()._student_loss(rollout, credit, log_ratio_output, reference, generator, num_tokens)
        if not coefficient:
            return out
        return self._with_data_divergence(out, rollout, reference, generator, num_tokens)

    def _with_data_divergence(
        self,
        out: StepOutput,
        rollout: Rollout,
        reference: Tensor | None,
        generator: Generator | None,
        num_tokens: Tensor | float,
    ) -> StepOutput:
        """Add the forward KL in reference states, weighted by the diversity of the last rollouts."""
        weight = self._data_kl_weight()
        if self.diversity is not None and reference is not None:
            self.diversity.add_reference(reference_agreement(rollout, reference))
        metrics = dict(out.metrics)
        if self.diversity is not None:
            metrics["data_kl_weight"] = torch.full_like(out.loss.detach(), weight)
        if not weight or reference is None:
            return StepOutput(out.loss, metrics)
        reference = rollout.model_kwargs["clean"] if self.block_length else reference
        divergence = data_divergence(
            self.process, self.student, self.teacher, rollout, reference, num_tokens=num_tokens, generator=generator
        )
        return StepOutput(out.loss + weight * divergence, {**metrics, "data_divergence": divergence.detach()})
