"""One optimiser step of DiDi-Instruct in a loop that hands over its micro-batches one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Generator, Tensor

from ..methods import DiDiInstruct, StepOutput, Verdict
from ..methods.parts import DrawnPart, draw_part, tokens_per_part
from ..rollout import Rollout
from ..training import Learner
from ..training.metrics import on_the_host


class DistillationStep:
    """Paths of all micro-batches of a step, and the losses that they give.

    The gradient is that of the whole batch: with more than one micro-batch, paths are drawn without a graph, rewards
    are normalised over all of them, and each path is walked again with its graph when its loss is asked for.

    Args:
        method: networks and configuration.
        learners: of "discriminator" and "auxiliary", where there are such.
        accelerator: precision.

    Attributes:
        parts: one for each micro-batch.
        losses: of the student, those that were asked for, for the caller to fill.
    """

    def __init__(self, method: DiDiInstruct, learners: Mapping[str, Learner], accelerator: Accelerator) -> None:
        self.method = method
        self.learners = learners
        self.accelerator = accelerator
        self.parts: list[DrawnPart | Rollout] = []
        self.losses: list[Tensor] = []
        self._taught = 0
        self._lines: dict[str, list[float]] = {}

    @property
    def is_taught(self) -> bool:
        """Whether every micro-batch gave its loss."""
        return self._taught == len(self.parts)

    def draw(
        self,
        paths: Sequence[Mapping[str, Any]],
        generators: Sequence[Generator],
        device: torch.device,
        *,
        with_graph: bool,
    ) -> None:
        """Draw the paths.

        Args:
            paths: keyword arguments of `DiDiInstruct.rollout`, of each micro-batch.
            generators: of each micro-batch.
            device: of the networks.
            with_graph: whether the student is updated in this step.
        """
        keep_logits = self.method.config.credit == "vocabulary"
        self._generators = list(generators)
        for given, generator in zip(paths, generators, strict=True):

            def draw(g: Generator, tokens: Tensor | None, given: Mapping[str, Any] = given) -> Rollout:
                with self.accelerator.autocast():
                    return self.method.rollout(generator=g, device=device, tokens=tokens, **given)

            if len(paths) == 1:
                with torch.set_grad_enabled(with_graph):
                    self.parts = [draw(generator, None)]
            else:
                self.parts.append(draw_part(draw, generator, keep_logits=keep_logits))
        self._tokens = tokens_per_part(self._rollouts)

    @property
    def _rollouts(self) -> list[Rollout]:
        return [part.rollout if isinstance(part, DrawnPart) else part for part in self.parts]

    def judge(self, references: Sequence[Tensor], *, train_discriminator: bool) -> None:
        """Update the discriminator, and score the samples of all micro-batches.

        Args:
            references: clean tokens of each micro-batch, int64 ``[B, L]``.
            train_discriminator: whether it is updated, where there is one.
        """
        verdicts: list[Verdict | None] = [None] * len(self.parts)
        each = list(zip(self._rollouts, references, self._generators, strict=True))
        self._references = list(references)
        if "discriminator" in self.learners and train_discriminator:
            for number, (rollout, reference, generator) in enumerate(each):
                with self._accumulating("discriminator", number):
                    with self.accelerator.autocast():
                        judged = self.method.discriminator_loss(
                            rollout, reference, generator=generator, num_tokens=self._tokens
                        )
                    self._backward("discriminator", judged)
                verdicts[number] = judged.verdict
            self._update("discriminator")
        with self.accelerator.autocast():
            if self.method.config.log_ratio == "mmd":
                verdicts = [self.method.mmd_verdict(rollout, reference) for rollout, reference, _ in each]
            self._credits = self.method.credits(self._rollouts, verdicts, self._generators)

    def student_loss(self) -> tuple[Rollout, Tensor]:
        """Paths and loss of the next micro-batch."""
        number, part = self._taught, self.parts[self._taught]
        self._taught += 1
        rollout = part.again() if isinstance(part, DrawnPart) else part
        credit = None if self._credits is None else self._credits[number]
        with self.accelerator.autocast():
            out = self.method.student_loss(
                rollout,
                credit=credit,
                reference=self._references[number],
                generator=self._generators[number],
                num_tokens=self._tokens,
            )
        self._note(out.metrics)
        return rollout, out.loss

    def fit_auxiliary(self) -> None:
        """Update the auxiliary denoiser on the paths of all micro-batches, where there is one."""
        if "auxiliary" not in self.learners:
            return
        for _ in range(self.method.config.ratio_updates):
            for number, (rollout, generator) in enumerate(zip(self._rollouts, self._generators, strict=True)):
                with self._accumulating("auxiliary", number):
                    with self.accelerator.autocast():
                        out = self.method.auxiliary_loss(rollout, generator=generator, num_tokens=self._tokens)
                    self._backward("auxiliary", out)
            self._update("auxiliary")

    def metrics(self) -> dict[str, float]:
        """Means over the micro-batches."""
        return {name: sum(values) / len(values) for name, values in self._lines.items()}

    def _accumulating(self, name: str, number: int) -> AbstractContextManager[None]:
        """Gradients wait for the last micro-batch before processes exchange them."""
        return self.learners[name].accumulating() if number < len(self.parts) - 1 else nullcontext()

    def _backward(self, name: str, out: StepOutput) -> None:
        self._note(out.metrics)
        self.learners[name].backward(out.loss / len(self.parts))

    def _update(self, name: str) -> None:
        figures = self.learners[name].update()
        self._note({f"{name}_{key}": value for key, value in figures.items() if key != "skipped_updates"})
        self._lines[f"{name}_skipped_updates"] = [figures["skipped_updates"]]

    def _note(self, metrics: Mapping[str, Tensor | float]) -> None:
        for name, value in on_the_host([metrics])[0].items():
            self._lines.setdefault(name, []).append(value)
