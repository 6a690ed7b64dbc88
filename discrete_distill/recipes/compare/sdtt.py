"""Distillation by SDTT in the library's loop."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from torch import Generator, nn

from ...checks import check_count
from ...distillation.methods import SDTT, SDTTConfig
from ...models import DiT
from ...process import MaskedDiffusion
from ...training import LoopConfig, ModuleOptimizer, OptimizerConfig
from ..common.corpus import TokenStream


@dataclass(kw_only=True)
class SDTTStageConfig:
    """How a student is made by SDTT.

    Args:
        method: the method's own choices.
        loop: how long, all rounds together (paper: 10 000 steps a round).
        batch_size: sequences of text per step (paper: 128).
        student: its optimiser (paper: rate 6e-5, EMA 0.9999); its average is the next round's teacher.
    """

    method: SDTTConfig = field(default_factory=SDTTConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(num_steps=70_000))
    batch_size: int = 32
    student: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=6e-5, ema_decay=0.9999))

    def __post_init__(self) -> None:
        check_count("--sdtt.batch-size", self.batch_size)


class SDTTDistillation:
    """A `StudentTraining`: rounds share out the steps equally."""

    def __init__(
        self,
        config: SDTTStageConfig,
        teacher: DiT,
        stream: TokenStream,
        process: MaskedDiffusion,
        accelerator: Accelerator,
    ) -> None:
        self.config = config
        self.stream = stream
        self.accelerator = accelerator
        steps = config.loop.num_steps
        self.student = ModuleOptimizer(SDTT.make_student(teacher, config.method), config.student, steps, accelerator)
        self.discriminator: ModuleOptimizer | None = None
        self.method = SDTT(self.student.module, copy.deepcopy(teacher), process, config.method)

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds: the round's teacher too."""
        return {"student": self.student, "sdtt": self.method}

    def networks(self) -> list[nn.Module]:
        """All networks that a step calls."""
        return [self.method.teacher, self.student.module]

    def step(self, index: int, generator: Generator) -> dict[str, float]:
        """One step; the first of a round makes the averaged student the teacher."""
        config = self.config
        round_index = config.method.round_of(index, config.loop.num_steps)
        if round_index != self.method.round:
            self.method.start_round(round_index, self.student.averaged)
        x = self.stream.crops(config.batch_size, generator=generator).to(self.accelerator.device)
        with self.accelerator.autocast():
            out = self.method.loss(x, generator=generator)
        figures = {key: float(value) for key, value in out.metrics.items()}
        return figures | {f"student_{key}": value for key, value in self.student.step(out.loss).items()}
