"""Settings of the recipe of tasks, and its presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ...checks import check_all_counts, check_choice, check_count, check_number
from ...distillation.methods import (
    AlphaLossConfig,
    CertaintyForcingConfig,
    DiDiInstructConfig,
    FeatureMMDConfig,
    IDLMConfig,
    MethodConfig,
    OnPolicyConfig,
    SDTTConfig,
)
from ...models import DiTConfig
from ...training import LoopConfig, OptimizerConfig
from ..common.corpus import DataConfig
from ..common.discriminator import DiscriminatorConfig
from ..common.distill_config import DistillConfig
from ..common.evaluation import EvaluateConfig
from ..common.likelihood import from_scratch
from ..common.methods import MethodsConfig
from ..common.teacher import TeacherConfig
from .named_tasks import MAKERS, NamedTask, TaskName, named_task

DECODINGS = ("ancestral", "strided", "confidence", "entropy-bounded", "threshold")
BY_STEPS = DECODINGS[:3]
"""Those that take a number of steps."""


@dataclass(kw_only=True)
class MeasureConfig:
    """What is measured.

    Args:
        num_prompts: answers of each network by each decoding.
        num_clues: cells that are given in the second set of prompts of Sudoku; 0 for no second set.
        decodings: out of ancestral, strided, confidence, entropy-bounded and threshold.
        forwards: evaluations of the network for a sequence, of ancestral, strided and confidence sampling; those above
            the length are left out, and the length, one token a step, is always there.
        gammas: bounds of entropy-bounded sampling, nats.
        thresholds: probabilities above which tokens are kept by threshold decoding.
        batch_size: sequences sampled at once.
        shown: answers of each network in the report.
    """

    num_prompts: int = 192
    num_clues: int = 0
    decodings: tuple[str, ...] = DECODINGS
    forwards: tuple[int, ...] = (4, 8, 16)
    gammas: tuple[float, ...] = (0.1, 0.3, 0.6, 1.2)
    thresholds: tuple[float, ...] = (0.5, 0.7, 0.9)
    batch_size: int = 256
    shown: int = 2

    def __post_init__(self) -> None:
        check_all_counts(self, "num_prompts", "batch_size", flag="--measure")
        check_count("--measure.num-clues", self.num_clues, minimum=0)
        check_count("--measure.shown", self.shown, minimum=0)
        for forwards in self.forwards:
            check_count("--measure.forwards", forwards)
        for gamma in self.gammas:
            check_number("--measure.gammas", gamma, minimum=0.0)
        for threshold in self.thresholds:
            check_number("--measure.thresholds", threshold, exclusive_minimum=0.0, maximum=1.0)
        unknown = [name for name in self.decodings if name not in DECODINGS]
        if unknown or not self.decodings:
            raise ValueError(
                f"unknown decoding {unknown[0] if unknown else ''!r} in --measure.decodings; choose out of "
                f"{', '.join(DECODINGS)}"
            )


@dataclass(kw_only=True)
class SolveConfig:
    """What the stage "sample" draws.

    Args:
        puzzles: one text each, such as "1__4 __1_ _1__ 4__1"; empty for answers without a prompt, or, where the task
            has prompts, for random ones.
        count: answers where no puzzles are given.
        method: whose student; empty for the first that was trained, those of ``--methods`` first; "teacher" for the
            teacher.
        decoding: ancestral, strided or confidence.
        forwards: evaluations of the network.
        watch: show the answers being filled in, step by step, or block by block where the network reads so.
        seconds_per_step: how long each state stays while watching.
    """

    puzzles: tuple[str, ...] = ()
    count: int = 2
    method: str = ""
    decoding: str = "confidence"
    forwards: int = 8
    watch: bool = False
    seconds_per_step: float = 0.5

    def __post_init__(self) -> None:
        check_all_counts(self, "count", "forwards", flag="--sample")
        check_number("--sample.seconds-per-step", self.seconds_per_step, minimum=0.0)
        if self.method not in ("", "teacher", *MethodsConfig.KNOWN):
            known = ", ".join(MethodsConfig.KNOWN)
            raise ValueError(f"unknown --sample.method {self.method!r}; choose one of teacher, {known}")
        check_choice("--sample.decoding", self.decoding, BY_STEPS)


@dataclass(kw_only=True)
class TaskConfig(MethodsConfig):
    """From a task with a verifier to students that solve it in few steps.

    Args:
        name: folder of this run, under ``output``; "{task}" in it stands for the task, with its size where that is not
            the task's own, so that runs of two tasks do not meet.
        task: sudoku, permutations, brackets, countdown or arithmetic.
        size: cells of a side (4, 6 or 9), letters, pairs of brackets, given numbers, or digits; 0 for the task's own.
        measure: what is measured.
        sample: what the stage "sample" draws.
    """

    name: str = "{task}"
    task: TaskName = "sudoku"
    size: int = 0
    methods: tuple[str, ...] = ("didi", "feature-mmd", "alpha")
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    sample: SolveConfig = field(default_factory=SolveConfig)
    # Follow from the task, or do not apply.
    data: DataConfig = field(init=False)
    discriminator: DiscriminatorConfig = field(init=False)
    evaluate: EvaluateConfig = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("--size", self.size, minimum=0)
        named = self.named_task()
        self.data = DataConfig(length=named.length)
        self.discriminator = DiscriminatorConfig(updates=0)
        self.evaluate = EvaluateConfig()
        self.teacher.model = named.network_config(self.teacher.model)
        if self.task == "sudoku" and self.measure.num_clues >= named.length:
            raise ValueError(
                f"--measure.num-clues {self.measure.num_clues} leaves nothing to solve of {named.length} "
                "cells; lower it"
            )

    @property
    def directory(self) -> Path:
        """``output / name``, with the task in the place of "{task}"."""
        task = self.task if self.size in (0, MAKERS[self.task][0]) else f"{self.task}-{self.size}"
        return self.output / self.name.replace("{task}", task)

    def named_task(self) -> NamedTask:
        """The task that the settings name."""
        return named_task(self.task, self.size)

    def trained(self) -> dict[str, DistillConfig]:
        """What is trained, by name."""
        every = self.distillations()
        return {name: every[name] for name in self.methods}


def distilled(method: MethodConfig, *, batch_size: int = 64, learning_rate: float = 5e-4) -> DistillConfig:
    """A distillation of a small network; the budget sets its steps."""
    return DistillConfig(
        method=method,
        discriminator=False,
        loop=LoopConfig(num_steps=1000, log_every=10, checkpoint_every=50, keep_checkpoints=1),
        batch_size=batch_size,
        student=OptimizerConfig(learning_rate=learning_rate, warmup_steps=10, schedule="cosine", ema_decay=0.95),
        ratio=OptimizerConfig(learning_rate=2.0 * learning_rate, warmup_steps=10, schedule="cosine"),
    )


def demo() -> TaskConfig:
    """Sudoku of 6x6 with the shipped teacher; ten minutes on two cores."""
    return TaskConfig(
        precision="fp32",
        teacher=TeacherConfig(
            path="",
            model=DiTConfig(
                vocab_size=7, max_length=36, hidden_size=96, num_layers=4, num_heads=4, cond_size=16, dropout=0.0
            ),
            loop=LoopConfig(num_steps=2000, log_every=50, checkpoint_every=100, keep_checkpoints=1),
            optimizer=from_scratch(learning_rate=2e-3, warmup_steps=150, ema_decay=0.998),
            batch_size=128,
            evaluate_every=500,
        ),
        distill=distilled(
            DiDiInstructConfig.recommended(
                paths={"gradient_steps": 2, "num_steps": (4, 8, 16)},
                credit={"corruption": {"num_draws": 2}},
                log_ratio={"updates": 2, "warmup": 10},
            ),
        ),
        idlm=distilled(IDLMConfig.recommended(paths={"gradient_steps": 2})),
        sdtt=distilled(SDTTConfig(teacher_steps=32, rounds=3)),
        feature_mmd=distilled(FeatureMMDConfig(scaled_advantages=True)),
        alpha=distilled(AlphaLossConfig()),
        certainty=distilled(CertaintyForcingConfig()),
        on_policy=distilled(OnPolicyConfig(order="random", teacher_steps=8, temperature=1.0, num_checks=0)),
        measure=MeasureConfig(num_clues=12),
    )


def long() -> TaskConfig:
    """All methods, ten times as long, on more answers: hours on two cores."""
    config = demo()
    config.name, config.amount, config.methods = "{task}-long", 600_000.0, MethodsConfig.KNOWN
    config.measure.num_prompts = 2048
    return config


PRESETS: dict[str, Callable[[], TaskConfig]] = {"demo": demo, "long": long}
