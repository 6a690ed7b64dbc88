"""DiDi-Instruct (arXiv 2509.25035): distil a masked diffusion teacher into a few-step student by an integral KL
divergence. `DistillationMethod` has the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..divergence import AuxiliaryDenoiserLogRatio, DiscriminatorLogRatio, LogRatioEstimator
from ..models import DiT
from ..process import Denoiser, MaskedDiffusion
from ..rollout import Rollout
from .assembly import make_diversity_control, make_estimator, make_matcher
from .config import DiDiInstructConfig
from .data_divergence import data_divergence
from .discriminator_fit import fit_discriminator
from .mmd import FeatureNetwork, FrozenFeatures, MMDLogRatio
from .networks import check_accepts_step, trainable_copy
from .output import Credit, StepOutput, Verdict
from .path_metrics import agreement_metrics, reference_agreement
from .protocol import UpdatePlan
from .sample_credit import SampleCredit
from .vocabulary_credit import VocabularyCredit


class DiDiInstruct:
    """The method, assembled from the library's parts.

    Networks stay as they are given: neither ``requires_grad`` nor their mode is changed. Paths are drawn and rewards
    read in evaluation mode; an auxiliary denoiser and a discriminator are trained in the mode that they are in.

    Losses are averages over the generated tokens of the batch, on all processes together: neither a prompt nor padding
    changes a gradient. A batch in parts has the gradient of the whole if each part's losses are given ``num_tokens`` of
    the whole, and the student's its `credits`, and they are added up; the MMD compares samples within a part.

    Args:
        student: denoiser that is trained.
        teacher: any denoiser; read without a graph, never given a gradient.
        discriminator: a `RatioNetwork`, or None if the log-ratio does not need one.
        process: mask and schedule.
        config: every choice.
        auxiliary: denoiser that is fitted to the student, for ``log_ratio="auxiliary"``; see `make_auxiliary`.
        features: frozen, for ``log_ratio="mmd"``; the teacher's middle block by default.

    Raises:
        ValueError: if the configured log-ratio lacks its network, or a network that is to be told its step has no true
            attribute ``accepts_step``.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Denoiser,
        discriminator: nn.Module | None,
        process: MaskedDiffusion,
        config: DiDiInstructConfig | None = None,
        *,
        auxiliary: nn.Module | None = None,
        features: FeatureNetwork | None = None,
    ) -> None:
        self.config = config = config if config is not None else DiDiInstructConfig()
        if config.log_ratio == "discriminator" and discriminator is None:
            raise ValueError('log_ratio="discriminator" needs a discriminator; see Discriminator.from_denoiser')
        if config.log_ratio == "auxiliary" and auxiliary is None:
            raise ValueError('log_ratio="auxiliary" needs auxiliary=; see DiDiInstruct.make_auxiliary')
        if config.step_conditioning:
            check_accepts_step(student, "student", "step_conditioning")
        if config.log_ratio == "auxiliary" and config.ratio_conditioning:
            check_accepts_step(auxiliary, "auxiliary", "ratio_conditioning")
        self.student = student
        self.teacher: Any = teacher
        self.discriminator = discriminator
        self.auxiliary = auxiliary
        self.features = features
        self.process = process
        self.matcher = make_matcher(process, config)
        self.diversity = make_diversity_control(config)
        self.estimator = None if config.credit == "vocabulary" else make_estimator(process, config, self._log_ratio())

    @staticmethod
    def make_student(teacher: DiT, config: DiDiInstructConfig) -> DiT:
        """A copy of the teacher, trainable and in evaluation mode, told its step if so configured; its first answers
        are the teacher's."""
        return trainable_copy(teacher, step_conditioning=config.step_conditioning)

    @staticmethod
    def make_auxiliary(teacher: DiT, config: DiDiInstructConfig) -> DiT:
        """A copy of the teacher to be fitted to the student, trainable and in evaluation mode; told the step that made
        what it reads (credit over the vocabulary), or the last step of its samples' paths, if so configured."""
        told = config.credit == "vocabulary" or config.ratio_conditioning
        return trainable_copy(teacher, step_conditioning=told)

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on needs beside its networks: the estimator's `RunningMean` and the `DiversityControl`,
        where it has them."""
        state = {} if self.estimator is None else self.estimator.state_dict()
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
        if self.estimator is not None:
            self.estimator.load_state_dict(state)

    def _log_ratio(self) -> LogRatioEstimator:
        if self.config.log_ratio == "discriminator":
            assert self.discriminator is not None
            return DiscriminatorLogRatio(self.process, self.discriminator)
        if self.config.log_ratio == "mmd":
            features = self.features if self.features is not None else FrozenFeatures(self.teacher)
            return MMDLogRatio(features, self.config.group_size)
        assert self.auxiliary is not None
        return AuxiliaryDenoiserLogRatio(self.process, self.auxiliary, self.teacher)

    @property
    def update_plan(self) -> UpdatePlan:
        """Order and number of the updates in a training step. A discriminator that gives the reward is updated before
        the student (the paper's Algorithm 1). An auxiliary denoiser follows the student: the reward is then read from a
        network that has not seen these samples, and its update does not need memory beside the graph of the paths."""
        return self.config.update_plan(discriminator=self.discriminator is not None)

    def loss(
        self,
        name: str,
        rollout: Rollout,
        *,
        reference: Tensor | None = None,
        generator: Generator | None = None,
        num_tokens: Tensor | float | None = None,
        credit: Credit | None = None,
        verdict: Verdict | None = None,
    ) -> StepOutput:
        """`student_loss`, `auxiliary_loss` or `discriminator_loss`; see `DistillationMethod`.

        Raises:
            ValueError: if the method does not train ``name``, or its loss needs a reference and got none.
        """
        if name not in self.update_plan.order:
            raise ValueError(f"this method trains {', '.join(self.update_plan.order)}, not {name!r}")
        if name == "student":
            return self.student_loss(
                rollout,
                verdict=verdict,
                credit=credit,
                reference=reference,
                generator=generator,
                num_tokens=num_tokens,
            )
        if name == "auxiliary":
            return self.auxiliary_loss(rollout, generator=generator, num_tokens=num_tokens)
        if reference is None:
            raise ValueError("the discriminator compares student states with data; pass reference=")
        return self.discriminator_loss(rollout, reference, generator=generator, num_tokens=num_tokens)

    def rollout_metrics(self, rollout: Rollout) -> dict[str, Tensor]:
        """See `agreement_metrics`."""
        return agreement_metrics(self.config, rollout)

    def rollout(
        self,
        batch_size: int | None = None,
        length: int | None = None,
        *,
        x_init: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        tokens: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> Rollout:
        """Student paths: ``batch_size`` sequences of ``length`` tokens, or completions of ``x_init``; with ``tokens``,
        samples of an earlier call, the same paths once more (see `IntermediateStateMatcher`). All networks are passed
        ``model_kwargs`` by keyword.

        Raises:
            ValueError: if the group size does not divide the batch, or neither sizes nor ``x_init`` are given.
        """
        shape = None
        if x_init is None:
            if batch_size is None or length is None:
                raise ValueError("give batch_size and length, or x_init")
            shape = (batch_size, length)
        rollout = self.matcher(
            self.student,
            shape,
            group_size=self.config.group_size,
            x_init=x_init,
            attention_mask=attention_mask,
            generator=generator,
            device=device,
            tokens=tokens,
            model_kwargs=model_kwargs,
        )
        if self.diversity is not None and tokens is None:
            for agreement in agreement_metrics(self.config, rollout).values():
                self.diversity.add(agreement)
        return rollout

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
        numbers of generated tokens. With ``reuse_verdict`` it is taken without dropout, since it is the reward too.

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
            num_tokens=_num_tokens(rollout, num_tokens),
            generator=generator,
        )

    def auxiliary_loss(
        self, rollout: Rollout, *, generator: Generator | None = None, num_tokens: Tensor | float | None = None
    ) -> StepOutput:
        """Fit the auxiliary denoiser to the student.

        With credit over the vocabulary, to the student's own probabilities at the hidden positions of every step's
        probe (soft targets: ``q(v | z') = E[p_student(v | z) | z']``); otherwise to its samples, by the NELBO.

        Args:
            rollout: of this step.
            generator: source of randomness.
            num_tokens: see `student_loss`.

        Raises:
            ValueError: if there is no auxiliary denoiser.
        """
        if self.auxiliary is None:
            raise ValueError("this method was made without an auxiliary denoiser")
        if self.config.credit == "vocabulary":
            loss = self._vocabulary_credit().auxiliary_loss(rollout, generator, _num_tokens(rollout, num_tokens))
        else:
            nelbo = self.process.nelbo(
                self.auxiliary,
                rollout.sequences,
                by="count",
                movable=rollout.movable,
                generator=generator,
                s=rollout.last_time,
                **rollout.denoiser_kwargs(),
            )
            loss = nelbo.nats.sum() / _num_tokens(rollout, num_tokens)
        return StepOutput(loss, {"auxiliary_loss": loss.detach()})

    def mmd_verdict(self, rollout: Rollout, reference: Tensor) -> Verdict:
        """What the MMD says of the student's samples beside ``reference``, for `student_loss`; nothing is trained.

        Args:
            rollout: of this step.
            reference: clean tokens of data or teacher, int64 ``[M, L]``.

        Raises:
            ValueError: if the log-ratio is another, or the batch holds fewer than two groups.
        """
        log_ratio = None if self.estimator is None else self.estimator.log_ratio
        if not isinstance(log_ratio, MMDLogRatio):
            raise ValueError(f'this method was made with log_ratio={self.config.log_ratio!r}, not "mmd"')
        return log_ratio.verdict(rollout, reference)

    def _vocabulary_credit(self) -> VocabularyCredit:
        return VocabularyCredit(self.process, self.config, self.teacher, self.auxiliary)

    def _sample_credit(self) -> SampleCredit:
        if self.estimator is None:
            raise ValueError('credit="vocabulary" has no rewards of samples')
        return SampleCredit(self.process, self.config, self.teacher, self.estimator)

    def credits(
        self,
        rollouts: Sequence[Rollout],
        verdicts: Sequence[Verdict | None] | None = None,
        generators: Sequence[Generator] | None = None,
        *,
        references: Sequence[Callable[[], Tensor]] | None = None,
    ) -> list[Credit] | None:
        """Rewards of a batch in parts, normalised over all of it; for `student_loss` of each part. None with credit
        over the vocabulary, which compares no samples.

        Args:
            rollouts: of every part; graphs and logits are not needed.
            verdicts: of every part; see `student_loss`.
            generators: of every part.
            references: of every part, for ``log_ratio="mmd"``.

        Raises:
            ValueError: if a reward is not finite.
        """
        if self.estimator is None:
            return None
        if self.config.log_ratio == "mmd" and references is not None:
            verdicts = [self.mmd_verdict(each, of()) for each, of in zip(rollouts, references, strict=True)]
        credit, none = self._sample_credit(), [None] * len(rollouts)
        each = zip(rollouts, verdicts or none, generators or none, strict=True)
        scores = [credit.score(rollout, verdict, generator) for rollout, verdict, generator in each]
        return [Credit(*pair) for pair in zip(scores, self.estimator.advantages(scores), strict=True)]

    def student_loss(
        self,
        rollout: Rollout,
        *,
        verdict: Verdict | None = None,
        credit: Credit | None = None,
        reference: Tensor | None = None,
        generator: Generator | None = None,
        num_tokens: Tensor | float | None = None,
    ) -> StepOutput:
        """The surrogate of the integral KL, with the regularisers; its gradient is for the student alone.

        Args:
            rollout: of this step.
            verdict: of `discriminator_loss` in this step, which is then not asked again; or of `mmd_verdict`.
            credit: of `credits`, where the rollout is a part of the batch; ``verdict`` is then not read.
            reference: clean tokens of data or teacher, int64 ``[B, L]``, needed with ``data_kl_coefficient``; given
                positions must agree with the rollout's.
            generator: source of randomness.
            num_tokens: what sums over generated tokens are divided by: those of the whole batch where the rollout is a
                part of it, as a mean over processes. `Rollout.num_tokens` by default.

        Raises:
            ValueError: if a log-probability of the path, or a reward, is not finite, or the reference is missing or of
                another shape than the samples.
        """
        tokens = _num_tokens(rollout, num_tokens)
        if self.config.log_ratio == "mmd" and reference is not None and credit is None and verdict is None:
            verdict = self.mmd_verdict(rollout, reference)
        if self.config.data_kl_coefficient and reference is None:
            raise ValueError(
                f"data_kl_coefficient = {self.config.data_kl_coefficient} reads reference sequences; pass "
                "student_loss(rollout, reference=...): data, or samples of the teacher at many steps"
            )
        if self.config.credit == "vocabulary":
            out = self._vocabulary_credit().student_loss(rollout, generator, tokens)
        else:
            out = self._sample_credit().student_loss(rollout, credit, verdict, generator, tokens)
        return out if reference is None else self._with_data_divergence(out, rollout, reference, generator, tokens)

    def _with_data_divergence(
        self,
        out: StepOutput,
        rollout: Rollout,
        reference: Tensor,
        generator: Generator | None,
        num_tokens: Tensor | float,
    ) -> StepOutput:
        """Add the forward KL in reference states, weighted by the diversity of the last rollouts."""
        if self.diversity is not None:
            self.diversity.add_reference(reference_agreement(rollout, reference))
        weight = self.config.data_kl_coefficient * (1.0 if self.diversity is None else self.diversity.weight)
        metrics = dict(out.metrics)
        if self.diversity is not None:
            metrics["data_kl_weight"] = torch.full_like(out.loss.detach(), weight)
        if not weight:
            return StepOutput(out.loss, metrics)
        divergence = data_divergence(
            self.process, self.student, self.teacher, rollout, reference, num_tokens=num_tokens, generator=generator
        )
        return StepOutput(out.loss + weight * divergence, {**metrics, "data_divergence": divergence.detach()})


def _num_tokens(rollout: Rollout, num_tokens: Tensor | float | None) -> Tensor | float:
    return rollout.num_tokens() if num_tokens is None else num_tokens
