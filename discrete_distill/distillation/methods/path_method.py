"""What the methods that train on student paths share: paths, and credit to their samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor

from ...process import MaskedDiffusion
from ...samplers import Frame
from ..divergence import ScoreFunctionIntegralKL
from ..networks import Networks
from ..paths import IntermediateStateMatcher
from ..rollout import Rollout
from .base import BaseMethod
from .corrupted_data import clean_sequences, refuse_masks
from .output import Credit, LogRatioOutput, StepOutput
from .path_config import PathConfig
from .path_metrics import agreement_metrics
from .protocol import UpdatePlan
from .sample_credit import SampleCredit

ConfigT = TypeVar("ConfigT", bound=PathConfig)


class PathMethod(BaseMethod[ConfigT]):
    """A `DistillationMethod` on student paths, whose samples are scored.

    Paths are drawn and rewards read in evaluation mode; ratio networks are trained in the mode that they are in.

    A student that reads by blocks (`PairedDenoiser`) walks all blocks of a row at once, each behind the clean blocks
    of a reference row, which the samples of a group share; see `InBlocks`.

    Losses are averages over the generated tokens of the batch, on all processes together: neither a prompt nor padding
    changes a gradient. A batch in parts has the gradient of the whole if each part's losses are given ``num_tokens`` of
    the whole, and the student's its `credits`, and they are added up.

    Args:
        networks: student, teacher, and what else the method reads.
        process: mask and schedule.
        config: every choice.
        estimator: scores the samples; None for a method that scores none.
        matcher: draws the paths, in place of that of the configuration.

    Raises:
        ValueError: if the student is to be passed its step and has no true attribute ``accepts_step``.

    Examples:
        >>> estimator = ScoreFunctionIntegralKL(process, DiscriminatorLogRatio(process, discriminator))
        >>> config = PathConfig(paths=Paths(), advantages=Advantages(group_size=4))
        >>> method = PathMethod(networks, process, config, estimator=estimator)
        >>> rollout = method.rollout(8, 16, generator=generator)
        >>> method.student_loss(rollout, generator=generator).loss.backward()
    """

    def __init__(
        self,
        networks: Networks,
        process: MaskedDiffusion,
        config: ConfigT,
        *,
        estimator: ScoreFunctionIntegralKL | None,
        matcher: IntermediateStateMatcher | None = None,
    ) -> None:
        super().__init__(networks, process, config)
        self.matcher = matcher or config.paths.matcher(process)
        self.estimator = estimator

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs in addition to the networks: the estimator's `RunningMean`, where it has one."""
        return {} if self.estimator is None else self.estimator.state_dict()

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from `state_dict`.

        Raises:
            ValueError: if it is of another baseline.
        """
        if self.estimator is not None:
            self.estimator.load_state_dict(state)

    @property
    def update_plan(self) -> UpdatePlan:
        """Order and number of the updates in a training step; paths in blocks begin behind reference sequences."""
        return self._with_data(super().update_plan)

    def _with_data(self, plan: UpdatePlan) -> UpdatePlan:
        return replace(plan, reads_reference=(*plan.reads_reference, "rollout")) if self.block_length else plan

    def rollout(
        self,
        batch_size: int | None = None,
        length: int | Frame | None = None,
        *,
        x_init: Tensor | None = None,
        attention_mask: Tensor | None = None,
        reference: Tensor | None = None,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        tokens: Tensor | None = None,
        num_steps: int | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        keep_logits: bool = True,
    ) -> Rollout:
        """Student paths: ``batch_size`` sequences of ``length`` tokens (or in a `Frame`), or completions of ``x_init``;
        with ``tokens``, samples of an earlier call, the same paths once more; ``num_steps`` fixes their number of steps
        (see `IntermediateStateMatcher`). All networks are passed ``model_kwargs`` by keyword. The student's loss needs
        ``keep_logits``; ``reference``, clean tokens ``[B, L]``, is read where the student reads by blocks, the first
        row of each group.

        Raises:
            ValueError: if the group size does not divide the batch, or neither sizes nor ``x_init`` are given; if the
                student reads by blocks, and there is no reference for them to follow, or prompts or padding differ
                within a group.
        """
        if self.block_length:
            clean, _ = clean_sequences(self.process, reference, (batch_size, length), x_init, attention_mask)
            group_size = self.config.advantages.group_size
            check_groups(group_size, x_init=x_init, attention_mask=attention_mask)
            clean = clean[::group_size].repeat_interleave(group_size, dim=0)[: len(clean)]
            model_kwargs = {**(model_kwargs or {}), "clean": clean}
        shape = None
        if x_init is None:
            if batch_size is None or length is None:
                raise ValueError("give batch_size and length, or x_init")
            shape = (batch_size, length)
        return self.matcher(
            self.student,
            shape,
            group_size=self.config.advantages.group_size,
            x_init=x_init,
            attention_mask=attention_mask,
            generator=generator,
            device=device,
            tokens=tokens,
            num_steps=num_steps,
            model_kwargs=model_kwargs,
            keep_logits=keep_logits,
        )

    def rollout_metrics(self, rollout: Rollout) -> dict[str, Tensor]:
        """See `agreement_metrics`."""
        return agreement_metrics(rollout)

    def credits(
        self,
        rollouts: Sequence[Rollout],
        log_ratio_outputs: Sequence[LogRatioOutput | None] | None = None,
        generators: Sequence[Generator] | None = None,
        *,
        references: Sequence[Callable[[], Tensor]] | None = None,
    ) -> list[Credit] | None:
        """See `DistillationMethod.credits`; None without an estimator.

        Raises:
            ValueError: if a reward is not finite.
        """
        if self.estimator is None:
            return None
        credit, none = self._sample_credit(), [None] * len(rollouts)
        each = zip(rollouts, log_ratio_outputs or none, generators or none, references or none, strict=True)
        scores = [
            credit.score(rollout, log_ratio_output or self._judge(rollout, reference), generator)
            for rollout, log_ratio_output, generator, reference in each
        ]
        return [Credit(*pair) for pair in zip(scores, self.estimator.advantages(scores), strict=True)]

    def student_loss(
        self,
        rollout: Rollout,
        *,
        log_ratio_output: LogRatioOutput | None = None,
        credit: Credit | None = None,
        reference: Tensor | None = None,
        generator: Generator | None = None,
        num_tokens: Tensor | float | None = None,
    ) -> StepOutput:
        """The surrogate, with the regularisers of the method; its gradient is for the student alone.

        Args:
            rollout: of this step.
            log_ratio_output: log-ratios of its samples that are already there, such as those of a discriminator's loss.
            credit: of `credits`, where the rollout is a part of the batch; ``log_ratio_output`` is then not read.
            reference: clean tokens of data or teacher, int64 ``[B, L]``, needed while the student is in
                ``update_plan.reads_reference``; given positions must agree with the rollout's.
            generator: source of randomness.
            num_tokens: what sums over generated tokens are divided by: those of the whole batch where the rollout is a
                part of it, as a mean over processes. `Rollout.num_tokens` by default.

        Raises:
            TypeError: if the reference is not int64.
            ValueError: if a log-probability of the path, or a reward, is not finite, or the reference is missing, of
                another shape than the samples, or holds masks at generated positions.
        """
        if reference is not None:
            rollout.check_reference(reference)
            refuse_masks(self.process, reference, rollout.generation_mask)
        tokens = divisor(rollout, num_tokens)
        return self._student_loss(rollout, credit, log_ratio_output, reference, generator, tokens)

    def _student_loss(
        self,
        rollout: Rollout,
        credit: Credit | None,
        log_ratio_output: LogRatioOutput | None,
        reference: Tensor | None,
        generator: Generator | None,
        num_tokens: Tensor | float,
    ) -> StepOutput:
        if credit is None and log_ratio_output is None:
            log_ratio_output = self._judge(rollout, None if reference is None else lambda: reference)
        return self._sample_credit().student_loss(rollout, credit, log_ratio_output, generator, num_tokens)

    def _judge(self, rollout: Rollout, reference: Callable[[], Tensor] | None) -> LogRatioOutput | None:
        """Log-ratios from a comparison with reference sequences, where the method makes one."""
        return None

    def _sample_credit(self) -> SampleCredit:
        if self.estimator is None:
            raise ValueError("a method without an estimator has no rewards of samples")
        return SampleCredit(self.process, self.teacher, self.estimator)


def check_groups(group_size: int, **values: Tensor | None) -> None:
    """Refuse rows ``[B, L]`` that differ within a group, whose samples follow the clean blocks of its first row."""
    for name, each in values.items():
        if each is not None and not torch.equal(each, each[::group_size].repeat_interleave(group_size, 0)[: len(each)]):
            raise ValueError(
                f"the rows of a group follow the same clean blocks, and {name} differs within groups of {group_size}: "
                f"repeat each row, {name}.repeat_interleave({group_size}, dim=0)"
            )


def divisor(rollout: Rollout, num_tokens: Tensor | float | None) -> Tensor | float:
    """What sums over generated tokens are divided by: ``num_tokens``, or those of the rollout."""
    return rollout.num_tokens() if num_tokens is None else num_tokens
