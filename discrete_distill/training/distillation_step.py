"""One training step of a distillation method: a batch in one or more parts, and the updates of its plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn

from ..distillation.methods import Credit, DistillationMethod, LogRatioOutput, StepOutput
from ..distillation.methods.parts import Draw, DrawnPart, draw_part, tokens_per_part
from ..distillation.rollout import DrawnBatch
from .optimization import ModuleOptimizer


@dataclass(frozen=True, kw_only=True)
class BatchPart:
    """One part (micro-batch) of a batch.

    Args:
        draw: draws its rollout: ``draw(generator, tokens)``, along given tokens if there are any.
        reference: called for clean tokens, int64 ``[B, L]``, each time that a loss reads some.
        generator: source of randomness of the part; parts may share one.

    Examples:
        >>> from discrete_distill.distillation.methods import DiDiInstruct
        >>> method = DiDiInstruct(networks, process)
        >>> def draw(generator, tokens):
        ...     return method.rollout(8, 16, generator=generator, tokens=tokens)
        >>> part = BatchPart(draw=draw, reference=lambda: data, generator=generator)
        >>> part.draw(part.generator, None).sequences.shape
        torch.Size([8, 16])
    """

    draw: Draw
    reference: Callable[[], Tensor]
    generator: Generator


class DistillationStep:
    """One training step, which obeys the method's `UpdatePlan`.

    The gradient of every network is that of the whole batch. With more than one part, rollouts are drawn without a
    graph, rewards are normalised over all parts, and each rollout is drawn again with its graph when the student's loss
    is computed; then every network makes its update.

    Args:
        method: networks and choices.
        module_optimizers: of the networks of the plan; of ``"student"`` only for `run`.
        accelerator: precision.
        parts: of the batch, on this process; equally many on each.
        index: number of the training step; 0 is the first.
        num_steps: training steps of the whole run.
        average: moving average of the student; that of ``module_optimizers["student"]`` by default.
        skipped: networks whose turn it is not in this step.

    Attributes:
        parts: of the batch.
        losses: of the student, for a caller of `student_loss` to fill.

    Examples:
        >>> from accelerate import Accelerator
        >>> method, accelerator = DiDiInstruct(networks, process), Accelerator(cpu=True)
        >>> trained = {"student": student, "discriminator": discriminator}
        >>> optimizers = {
        ...     name: ModuleOptimizer(each, OptimizerConfig(), 100, accelerator) for name, each in trained.items()
        ... }
        >>> def draw(generator, tokens):
        ...     return method.rollout(8, 16, generator=generator, tokens=tokens)
        >>> part = BatchPart(draw=draw, reference=lambda: data, generator=generator)
        >>> metrics = DistillationStep(method, optimizers, accelerator, [part, part], 0, num_steps=100).run()
        >>> metrics["student_skipped_updates"]
        0.0
    """

    def __init__(
        self,
        method: DistillationMethod,
        module_optimizers: Mapping[str, ModuleOptimizer],
        accelerator: Accelerator,
        parts: Sequence[BatchPart],
        index: int,
        *,
        num_steps: int,
        average: nn.Module | None = None,
        skipped: Collection[str] = (),
    ) -> None:
        self.method = method
        self.module_optimizers = module_optimizers
        self.accelerator = accelerator
        self.parts = list(parts)
        self.losses: list[Tensor] = []
        self._index, self._num_steps, self._average = index, num_steps, average
        self.plan = method.update_plan
        self.updates_student = self.plan.updates_student(index)
        place = self.plan.order.index("student")
        turns = [name for name in self.plan.networks(index) if name not in skipped]
        self._before = [name for name in turns if self.plan.order.index(name) < place]
        self._after = [name for name in turns if self.plan.order.index(name) > place]
        self._student_references = [cache(part.reference) for part in self.parts]
        self._log_ratio_outputs: list[LogRatioOutput | None] = [None] * len(self.parts)
        self._credits: list[Credit] | None = None
        self._student_lines: list[Mapping[str, Tensor]] = []
        self._metrics: dict[str, Any] = {}

    @property
    def is_taught(self) -> bool:
        """Whether every part gave its loss."""
        return len(self._student_lines) == len(self.parts)

    def run(self) -> dict[str, Any]:
        """The whole step, with the student's update.

        Returns:
            Metrics by name, means over the parts; tensors stay on the device.
        """
        self.begin()
        if self.updates_student:
            for number in range(len(self.parts)):
                with self._accumulating("student", number):
                    self.module_optimizers["student"].backward(self.student_loss()[1] / len(self.parts))
            self._update("student")
        else:
            self._metrics |= _means([self.method.rollout_metrics(rollout) for rollout in self._rollouts])
        self.finish()
        return self.metrics()

    def begin(self) -> None:
        """Prepare the method, draw the rollouts of all parts, and update the networks that precede the student."""
        average = self._average
        if average is None and "student" in self.module_optimizers:
            average = self.module_optimizers["student"].averaged
        self.method.begin_step(self._index, self._num_steps, average=average)
        self._drawn = [self._draw(part) for part in self.parts]
        self._tokens = tokens_per_part(self._rollouts)
        for name in self._before:
            self._fit(name)

    def student_loss(self) -> tuple[DrawnBatch, Tensor]:
        """Rollout and loss of the next part, after `begin`."""
        number = len(self._student_lines)
        if not number and len(self.parts) > 1:
            with self.accelerator.autocast():
                self._credits = self.method.credits(
                    self._rollouts,
                    self._log_ratio_outputs,
                    [part.generator for part in self.parts],
                    references=self._student_references,
                )
        drawn = self._drawn[number]
        rollout = drawn.again() if isinstance(drawn, DrawnPart) else drawn
        credit = None if self._credits is None else self._credits[number]
        given = {"credit": credit, "log_ratio_output": self._log_ratio_outputs[number]}
        out = self._loss("student", number, rollout, self._student_references[number], **given)
        self._student_lines.append(out.metrics)
        return rollout, out.loss

    def finish(self) -> None:
        """Update the networks that follow the student."""
        for name in self._after:
            self._fit(name)

    def metrics(self) -> dict[str, Any]:
        """Means over the parts, of the last update of each network; tensors stay on the device."""
        return {**_means(self._student_lines), **self._metrics}

    @property
    def _rollouts(self) -> list[DrawnBatch]:
        return [drawn.rollout if isinstance(drawn, DrawnPart) else drawn for drawn in self._drawn]

    def _draw(self, part: BatchPart) -> DrawnPart | DrawnBatch:
        draw = partial(self._draw_paths, part.draw)
        if len(self.parts) > 1:
            return draw_part(draw, part.generator, keep_logits=self.plan.keeps_logits)
        with torch.set_grad_enabled(self.updates_student):
            return draw(part.generator, None)

    def _draw_paths(self, draw: Draw, generator: Generator, tokens: Tensor | None) -> DrawnBatch:
        with self.accelerator.autocast():
            return draw(generator, tokens)

    def _fit(self, name: str) -> None:
        """One update of another network than the student."""
        lines = []
        for number, (part, rollout) in enumerate(zip(self.parts, self._rollouts, strict=True)):
            with self._accumulating(name, number):
                out = self._loss(name, number, rollout, part.reference)
                self.module_optimizers[name].backward(out.loss / len(self.parts))
            lines.append(out.metrics)
            if out.log_ratio_output is not None:
                self._log_ratio_outputs[number] = out.log_ratio_output
        self._metrics |= _means(lines)
        self._update(name)

    def _loss(
        self, name: str, number: int, rollout: DrawnBatch, reference: Callable[[], Tensor], **given: Any
    ) -> StepOutput:
        # Looked up in every step: a loss whose weight is 0 reads none, and drawing them may be costly.
        if name in self.method.update_plan.reads_reference:
            given["reference"] = reference()
        # An autocast keeps the weights that it has cast, so each loss has its own.
        with self.accelerator.autocast():
            return self.method.loss(
                name, rollout, generator=self.parts[number].generator, num_tokens=self._tokens, **given
            )

    def _accumulating(self, name: str, number: int) -> AbstractContextManager[None]:
        """Gradients wait for the last part before processes exchange them."""
        return self.module_optimizers[name].accumulating() if number < len(self.parts) - 1 else nullcontext()

    def _update(self, name: str) -> None:
        self._metrics |= {f"{name}_{key}": value for key, value in self.module_optimizers[name].update().items()}


def _means(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of metrics that all lines have."""
    return {name: sum(line[name].detach() for line in lines) / len(lines) for name in lines[0]} if lines else {}
