"""The distillation stage: DiDi-Instruct in the library's loop."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import Generator, Tensor

from ..methods import DiDiInstruct, DiDiInstructConfig, StepOutput, Verdict
from ..models import Discriminator, DiT
from ..process import MaskedDiffusion
from ..rollout import Rollout
from ..samplers import AncestralSampler
from ..training import Learner, LoopConfig, OptimizerConfig, TrainingLoop
from .corpus import TokenStream


@dataclass(kw_only=True)
class DistillConfig:
    """How the student is made.

    Args:
        method: the method's own choices; ``--distill.method.*``.
        loop: how long (paper: 10 000 steps).
        batch_size: student paths per step.
        student: its optimiser (paper: rate 1e-6, EMA 0.999).
        ratio: optimiser of discriminator and auxiliary denoiser (paper: rate 1e-5).
        discriminator: train one, for the log-ratio or for guided sampling.
        discriminator_blocks: its trainable blocks (paper: 4).
        discriminator_every: student steps between its updates.
        teacher_steps: steps of the teacher where its samples are the reference.
    """

    method: DiDiInstructConfig = field(default_factory=DiDiInstructConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(num_steps=10_000))
    batch_size: int = 32
    student: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-6, ema_decay=0.999))
    ratio: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-5))
    discriminator: bool = True
    discriminator_blocks: int = 4
    discriminator_every: int = 1
    teacher_steps: int = 64

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.method.group_size:
            raise ValueError(
                f"group_size {self.method.group_size} does not divide batch_size {self.batch_size}; "
                "change --distill.batch-size or --distill.method.group-size"
            )
        if self.method.log_ratio == "discriminator" and not self.discriminator:
            raise ValueError('log_ratio="discriminator" needs --distill.discriminator')


class Distillation:
    """Networks, their learners and one training step."""

    def __init__(
        self,
        config: DistillConfig,
        teacher: DiT,
        stream: TokenStream,
        process: MaskedDiffusion,
        accelerator: Accelerator,
    ) -> None:
        self.config = config
        self.stream = stream
        self.process = process
        self.accelerator = accelerator
        method = config.method
        steps = config.loop.num_steps
        self.student = Learner(DiDiInstruct.make_student(teacher, method), config.student, steps, accelerator)
        self.auxiliary = self.discriminator = None
        if method.log_ratio == "auxiliary":
            auxiliary = DiDiInstruct.make_auxiliary(teacher, method)
            self.auxiliary = Learner(auxiliary, config.ratio, steps * method.ratio_updates, accelerator)
        if config.discriminator:
            network = Discriminator.from_denoiser(teacher, min(config.discriminator_blocks, len(teacher.blocks)))
            self.discriminator = Learner(network, config.ratio, steps, accelerator)
        self.method = DiDiInstruct(
            self.student.module,
            copy.deepcopy(teacher),
            None if self.discriminator is None else self.discriminator.module,
            process,
            method,
            auxiliary=None if self.auxiliary is None else self.auxiliary.module,
        )

    def parts(self) -> dict[str, Learner]:
        """What a checkpoint holds."""
        learners = {"student": self.student, "auxiliary": self.auxiliary, "discriminator": self.discriminator}
        return {name: learner for name, learner in learners.items() if learner is not None}

    def step(self, index: int, generator: Generator) -> dict[str, float]:
        """One step. A discriminator that gives the reward is updated before the student (the paper's Algorithm 1). An
        auxiliary denoiser follows the student: the reward is then read from a network that has not seen these samples,
        and its update does not need memory beside the graph of the paths."""
        with self.accelerator.autocast():
            rollout = self.method.rollout(
                self.config.batch_size,
                self.stream.length,
                generator=generator,
                device=self.accelerator.device,
            )
        if self.config.method.log_ratio == "discriminator":
            metrics, verdict = self._update_discriminator(index, rollout, generator)
            return metrics | self._update_student(index, rollout, verdict, generator)
        metrics = self._update_student(index, rollout, None, generator)
        metrics |= self._update_auxiliary(rollout, generator)
        return metrics | self._update_discriminator(index, rollout, generator)[0]

    def _update_student(
        self, index: int, rollout: Rollout, verdict: Verdict | None, generator: Generator
    ) -> dict[str, float]:
        if index < self.config.method.ratio_warmup:
            return {}
        with self.accelerator.autocast():
            out = self.method.student_loss(rollout, verdict=verdict, generator=generator)
        return _update(self.student, out, "student")

    def _update_auxiliary(self, rollout: Rollout, generator: Generator) -> dict[str, float]:
        if self.auxiliary is None:
            return {}
        metrics: dict[str, float] = {}
        for _ in range(self.config.method.ratio_updates):
            with self.accelerator.autocast():
                out = self.method.auxiliary_loss(rollout, generator=generator)
            metrics |= _update(self.auxiliary, out, "auxiliary")
        return metrics

    def _update_discriminator(
        self, index: int, rollout: Rollout, generator: Generator
    ) -> tuple[dict[str, float], Verdict | None]:
        if self.discriminator is None or index % self.config.discriminator_every:
            return {}, None
        reference = self.reference(generator)
        with self.accelerator.autocast():
            out = self.method.discriminator_loss(rollout, reference, generator=generator)
        return _update(self.discriminator, out, "discriminator"), out.verdict

    def reference(self, generator: Generator) -> Tensor:
        """What the discriminator calls real: crops of the text, or samples of the teacher."""
        if self.config.method.reference == "data":
            crops = self.stream.crops(self.config.batch_size, generator=generator)
            return crops.to(self.accelerator.device)
        sampler = AncestralSampler(self.process, num_steps=self.config.teacher_steps)
        shape = (self.config.batch_size, self.stream.length)
        with self.accelerator.autocast():
            return sampler(self.method.teacher, shape, generator=generator, device=self.accelerator.device).sequences


def distil(
    config: DistillConfig,
    teacher: DiT,
    stream: TokenStream,
    process: MaskedDiffusion,
    accelerator: Accelerator,
    directory: Path,
) -> list[dict[str, float]]:
    """Distil ``teacher``; student (its average) and discriminator are written to ``directory/student``.

    Returns:
        The logged metrics.
    """
    torch.manual_seed(config.loop.seed)
    distillation = Distillation(config, teacher, stream, process, accelerator)
    history = TrainingLoop(
        config.loop,
        directory,
        distillation.parts(),
        distillation.step,
        label="distil",
        shown=("log_ratio", "entropy", "discriminator_accuracy"),
        rank=accelerator.process_index,
        device=accelerator.device,
    ).run()
    if accelerator.is_main_process:
        save_student(distillation, directory / "student")
    return history


def save_student(distillation: Distillation, directory: Path) -> None:
    """``model.safetensors`` and, in ``discriminator/``, the discriminator."""
    cast(DiT, distillation.student.averaged).save_pretrained(directory)
    if distillation.discriminator is not None:
        cast(Discriminator, distillation.discriminator.averaged).save_pretrained(directory / "discriminator")


def _update(learner: Learner, out: StepOutput, name: str) -> dict[str, float]:
    figures = {key: float(value) for key, value in out.metrics.items()}
    return figures | {f"{name}_{key}": value for key, value in learner.step(out.loss).items()}
