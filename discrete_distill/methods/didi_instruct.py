"""DiDi-Instruct (arXiv 2509.25035): distil a masked diffusion teacher into a few-step student by an integral KL
divergence.

One training step is

    rollout = method.rollout(batch_size, length, generator=g)      # student paths, evaluated once, with their graph
    method.auxiliary_loss(rollout).loss.backward()                 # or discriminator_loss(rollout, reference)
    method.student_loss(rollout).loss.backward()

with an optimiser of the caller's after each. The object holds networks and configuration: no optimiser, no device.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from ..divergence import (
    AuxiliaryDenoiserLogRatio,
    DiscriminatorLogRatio,
    LogRatio,
    LogRatioEstimator,
    ScoreFunctionIntegralKL,
    SurrogateOutput,
    token_divergence,
)
from ..matching import IntermediateStateMatcher, logits_at_states
from ..models import DiT, discriminator_accuracy, discriminator_loss, masked_mean
from ..process import BetaTime, ConstantWeight, ElboWeight, MaskedDiffusion
from ..rewards import LogRatioReward
from ..rollout import PathStep, Rollout
from .config import DiDiInstructConfig
from .mmd import FeatureNetwork, FrozenFeatures, MMDLogRatio
from .output import StepOutput, Verdict
from .vocabulary_credit import VocabularyCredit


class DiDiInstruct:
    """The method, assembled from the library's parts.

    Args:
        student: denoiser that is trained.
        teacher: frozen denoiser; never given a gradient.
        discriminator: a `RatioNetwork`, or None if the log-ratio does not need one.
        process: mask and schedule.
        config: every choice.
        auxiliary: denoiser that is fitted to the student, for ``log_ratio="auxiliary"``; see `make_auxiliary`.
        features: frozen, for ``log_ratio="mmd"``; the teacher's middle block by default.

    Raises:
        ValueError: if the configured log-ratio lacks its network.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
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
        self.student = student
        self.teacher = teacher.requires_grad_(False).eval()
        self.discriminator = discriminator
        self.auxiliary = auxiliary
        self.features = features
        self.process = process
        self.matcher = self._make_matcher()
        self.estimator = None if config.credit == "vocabulary" else self._make_estimator()

    @staticmethod
    def make_student(teacher: DiT, config: DiDiInstructConfig) -> DiT:
        """A copy of the teacher, told its step if so configured; its first answers are the teacher's."""
        return teacher.with_step_conditioning() if config.step_conditioning else _trainable_copy(teacher)

    @staticmethod
    def make_auxiliary(teacher: DiT, config: DiDiInstructConfig) -> DiT:
        """A copy of the teacher to be fitted to the student; told the step that made what it reads (credit over the
        vocabulary), or the last step of its samples' paths, if so configured."""
        told = config.credit == "vocabulary" or config.ratio_conditioning
        return teacher.with_step_conditioning() if told else _trainable_copy(teacher)

    def _make_matcher(self) -> IntermediateStateMatcher:
        config = self.config
        return IntermediateStateMatcher(
            self.process,
            num_steps=config.path_steps if config.score_decomposition else (1,),
            tau_law=self._tau_law() if config.path_times == "random" else None,
            rows="masked" if config.credit == "vocabulary" else "revealed",
            gradient_steps=config.gradient_steps,
            branching=config.branching,
        )

    def _tau_law(self) -> BetaTime:
        config = self.config
        return BetaTime(config.tau_low, config.tau_high, a=config.tau_shape, b=config.tau_shape)

    def _make_estimator(self) -> ScoreFunctionIntegralKL:
        config = self.config
        omega = ElboWeight(self.process.schedule, config.omega_low, config.omega_high)
        return ScoreFunctionIntegralKL(
            self.process,
            self._log_ratio(),
            time_law=self._tau_law(),
            weight=omega if config.omega == "elbo" else ConstantWeight(),
            importance_weight=config.importance_weight,
            credit="token" if config.credit == "token" else "sequence",
            window=config.window,
            corruptions=config.corruptions,
            by=config.corruption_by,
            shared_masks=config.branching,
            reward=LogRatioReward(config.reward_clip),
            baseline=config.baseline,
            scale=config.scale,
            advantage_clip=config.advantage_clip,
        )

    def _log_ratio(self) -> LogRatioEstimator:
        if self.config.log_ratio == "discriminator":
            assert self.discriminator is not None
            return DiscriminatorLogRatio(self.process, self.discriminator)
        if self.config.log_ratio == "mmd":
            features = self.features if self.features is not None else FrozenFeatures(self.teacher)
            return MMDLogRatio(features, self.config.group_size)
        assert self.auxiliary is not None
        return AuxiliaryDenoiserLogRatio(self.process, self.auxiliary, self.teacher)

    def rollout(
        self,
        batch_size: int | None = None,
        length: int | None = None,
        *,
        x_init: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        **cond: Any,
    ) -> Rollout:
        """Student paths: ``batch_size`` sequences of ``length`` tokens, or completions of ``x_init``.

        Raises:
            ValueError: if the group size does not divide the batch, or neither sizes nor ``x_init`` are given.
        """
        shape = None
        if x_init is None:
            if batch_size is None or length is None:
                raise ValueError("give batch_size and length, or x_init")
            shape = (batch_size, length)
        return self.matcher(
            self.student,
            shape,
            group_size=self.config.group_size,
            x_init=x_init,
            attention_mask=attention_mask,
            generator=generator,
            device=device,
            **cond,
        )

    def discriminator_loss(
        self, rollout: Rollout, reference: Tensor, *, generator: Generator | None = None
    ) -> StepOutput:
        """Binary cross-entropy between student states and reference tokens corrupted to the same times.

        Args:
            rollout: of this step.
            reference: clean tokens of data or teacher, int64 ``[B, L]``; given positions must agree with the rollout's.
            generator: source of randomness.

        Raises:
            ValueError: if there is no discriminator or the shapes differ.
        """
        if self.discriminator is None:
            raise ValueError("this method was made without a discriminator")
        if reference.shape != rollout.sequences.shape:
            raise ValueError(
                f"reference has shape {tuple(reference.shape)}, the rollout {tuple(rollout.sequences.shape)}; "
                "give as many reference sequences as student ones"
            )
        z, t = self._judged_states(rollout, generator)
        z_reference = self.process.corrupt(reference, t, movable=rollout.movable, generator=generator)
        counted, counted_reference = rollout.movable, rollout.movable
        if self.config.discriminator_states == "corrupted":
            counted = self.process.is_masked(z, counted)
            counted_reference = self.process.is_masked(z_reference, counted_reference)
        kwargs = rollout.denoiser_kwargs()
        logits, logits_reference = (
            self.discriminator(z, t, **kwargs),
            self.discriminator(z_reference, t, **kwargs),
        )
        loss = discriminator_loss(
            logits, logits_reference, counted, counted_reference, label_smoothing=self.config.label_smoothing
        )
        accuracy = discriminator_accuracy(logits, logits_reference, counted, counted_reference)
        metrics = {"discriminator_loss": loss.detach(), "discriminator_accuracy": accuracy}
        if not self.config.reuse_verdict:
            return StepOutput(loss, metrics)
        values = logits.detach().float() * counted
        return StepOutput(loss, metrics, Verdict(t, LogRatio(values, masked_mean(values, counted))))

    def _judged_states(self, rollout: Rollout, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Student states and their times that the discriminator sees."""
        if self.config.discriminator_states == "corrupted":
            t = self._corruption_time(rollout, generator)
            return self.process.corrupt(rollout.sequences, t, movable=rollout.movable, generator=generator), t
        states = torch.stack([step.z_next for step in rollout.steps])
        times = torch.stack([step.s for step in rollout.steps])
        batch = torch.arange(states.shape[1], device=states.device)
        which = torch.randint(len(states), batch.shape, device=states.device, generator=generator)
        return states[which, batch], times[which, batch]

    def _is_coupled(self, rollout: Rollout) -> bool:
        # A path of one step has no intermediate time: corrupted to its tau, 1, nothing could be told apart.
        return self.config.coupled_time and len(rollout.steps) > 1

    def _corruption_time(self, rollout: Rollout, generator: Generator | None) -> Tensor:
        if self._is_coupled(rollout):
            return rollout.tau
        batch = len(rollout.sequences)
        t = self._tau_law().sample(batch // rollout.group_size, device=rollout.sequences.device, generator=generator).t
        return t.repeat_interleave(rollout.group_size)

    def auxiliary_loss(self, rollout: Rollout, *, generator: Generator | None = None) -> StepOutput:
        """Fit the auxiliary denoiser to the student.

        With credit over the vocabulary, to the student's own probabilities at the hidden positions of every step's
        probe (soft targets: ``q(v | z') = E[p_student(v | z) | z']``); otherwise to its samples, by the NELBO.

        Raises:
            ValueError: if there is no auxiliary denoiser.
        """
        if self.auxiliary is None:
            raise ValueError("this method was made without an auxiliary denoiser")
        if self.config.credit == "vocabulary":
            loss = self._vocabulary_credit().auxiliary_loss(rollout, generator)
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
            loss = nelbo.nats.sum() / rollout.num_tokens()
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

    def student_loss(
        self, rollout: Rollout, *, verdict: Verdict | None = None, generator: Generator | None = None
    ) -> StepOutput:
        """The surrogate of the integral KL, with the regularisers; its gradient is for the student alone.

        Args:
            rollout: of this step.
            verdict: of `discriminator_loss` in this step, which is then not asked again; or of `mmd_verdict`.
            generator: source of randomness.
        """
        if self.config.credit == "vocabulary":
            return self._vocabulary_credit().student_loss(rollout, generator)
        return self._score_function_loss(rollout, verdict, generator)

    def _score_function_loss(
        self, rollout: Rollout, verdict: Verdict | None, generator: Generator | None
    ) -> StepOutput:
        losses = [self._step_losses(rollout, step) for step in rollout.steps]
        steps = list(zip(rollout.steps, losses, strict=True))
        token_log_probs = torch.stack([step.on_canvas(each.log_prob) for step, each in steps]).sum(0)
        out = self._surrogate(rollout, token_log_probs, verdict, generator)
        tokens = rollout.num_tokens()
        loss = out.loss / rollout.sequences.shape[1]
        entropy = torch.stack([each.entropy.sum() for each in losses]).sum() / tokens
        metrics = {
            "log_ratio": out.log_ratio.mean(),
            "log_ratio_std": out.log_ratio.std(),
            "clipped_rewards": (out.log_ratio.abs() >= self.config.reward_clip).float().mean(),
            "clipped_advantages": self._clipped(out.advantages),
            "entropy": entropy.detach(),
        }
        if self.config.kl_coefficient:
            divergence = torch.stack([each.divergence.sum() for each in losses]).sum() / tokens
            loss = loss + self.config.kl_coefficient * divergence
            metrics["teacher_divergence"] = divergence.detach()
        if self.config.entropy_coefficient:
            loss = loss - self.config.entropy_coefficient * entropy
        return StepOutput(loss, metrics)

    def _surrogate(
        self, rollout: Rollout, token_log_probs: Tensor, verdict: Verdict | None, generator: Generator | None
    ) -> SurrogateOutput:
        assert self.estimator is not None
        if verdict is not None:
            return self.estimator.from_log_ratio(
                verdict.log_ratio, verdict.t, token_log_probs, group_size=rollout.group_size
            )
        return self.estimator(
            rollout.sequences,
            token_log_probs,
            group_size=rollout.group_size,
            t=rollout.tau if self._is_coupled(rollout) else None,
            movable=rollout.movable,
            generator=generator,
            s=rollout.last_time,
            **rollout.denoiser_kwargs(),
        )

    def _clipped(self, advantages: Tensor) -> Tensor:
        limit = self.config.advantage_clip
        if limit is None:
            return advantages.new_zeros(())
        return (advantages.abs() >= limit).float().mean()

    def _step_losses(self, rollout: Rollout, step: PathStep) -> _StepLosses:
        """Log-probability, entropy and divergence from the teacher, at what the step revealed."""
        if not self.config.kl_coefficient:
            out = step.losses()
            return _StepLosses(out.log_prob, out.entropy, torch.zeros_like(out.entropy))
        with torch.no_grad():
            teacher_RV = logits_at_states(
                self.teacher, step.z, step.t, step.revealed_rows(), **rollout.denoiser_kwargs()
            )
        out = step.losses(teacher_RV)
        assert out.forward_kl is not None
        assert out.reverse_kl is not None
        mix = {"forward": 1.0, "reverse": 0.0, "jeffreys": self.config.kl_beta}.get(self.config.kl_kind)
        if mix is None:
            both = (self.process.masked_log_probs(logits) for logits in (step.revealed_logits(), teacher_RV))
            divergence = token_divergence(*both, kind=self.config.kl_kind, beta=self.config.kl_beta)
        else:
            divergence = mix * out.forward_kl + (1.0 - mix) * out.reverse_kl
        return _StepLosses(out.log_prob, out.entropy, divergence)


class _StepLosses(NamedTuple):
    """At the ``R`` positions that a step revealed: ``log p`` of the token, entropy, divergence from the teacher."""

    log_prob: Tensor
    entropy: Tensor
    divergence: Tensor


def _trainable_copy(teacher: DiT) -> DiT:
    # A teacher that a method has frozen would be copied frozen.
    return copy.deepcopy(teacher).requires_grad_(True)
