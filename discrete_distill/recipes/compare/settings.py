"""Settings of the comparison, and its presets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from ...checks import check_count, check_number
from ...distillation.methods import (
    AlphaLossConfig,
    CertaintyForcingConfig,
    DiDiInstructConfig,
    FeatureMMDConfig,
    IDLMConfig,
    MethodConfig,
    OnPolicyConfig,
    RolloutMMDConfig,
    SDTTConfig,
)
from ...training import LoopConfig, OptimizerConfig
from ..common.budget import BudgetKind
from ..common.discriminator import DiscriminatorConfig
from ..common.distill_config import DistillConfig
from ..common.evaluation import EvaluateConfig
from ..common.methods import MethodsConfig
from ..tasks.named_tasks import TaskName
from ..text.judge import JudgeConfig
from ..text.settings import PRESETS as TEXT_PRESETS
from ..text.settings import in_strides, to_target
from .ablation import variants
from .autoregressive import AutoregressiveConfig


def paper_sdtt() -> DistillConfig:
    """SDTT with the paper's steps and optimiser (arXiv 2410.21035), on batches of 32 in place of 128."""
    return DistillConfig(
        method=SDTTConfig(),
        loop=LoopConfig(num_steps=70_000),
        student=OptimizerConfig(learning_rate=6e-5, ema_decay=0.9999),
        discriminator=False,
    )


@dataclass(kw_only=True)
class ComparisonConfig(MethodsConfig):
    """Methods trained from one teacher under one budget, and evaluated alike.

    Args:
        methods: which, out of sdtt, didi (``--distill.*``), didi-paper, didi-strided, didi-target, idlm, mmd,
            feature-mmd, alpha, certainty, on-policy and ar. The teacher is always there, and each method that has a
            discriminator is sampled with RGAS too.
        autoregressive_share: budgets that the autoregressive model is given, since it starts from nothing.
        train_seeds: trainings of each method; the seeds of sampling take turns over them. With one, spread is that of
            sampling alone.
        tasks: tasks with a verifier on which those methods are compared as well that the recipe of tasks knows: sudoku,
            permutations, brackets, countdown, arithmetic; each with a small teacher and settings of its own.
        task_evaluations: network evaluations of each method on each task.
        ablation: instead of ``methods``, compare DiDi-Instruct as published with itself less one technique at a time.
        temperatures: measured first; more follow until the entropy of held-out text is enclosed.
        temperature_spacing: of those that follow.
        temperature_limits: minimum and maximum of those that follow.
        extra_judges: beside the recipe's own: 'smollm2', a folder, or a hub name such as gpt2-large.
        texts: files whose likelihood bound is measured, beside held-out text (the paper: seven sets).
        bound_sequences: sequences of each text for the bound.
        didi_paper: the published method, ``didi-paper``, and what is ablated.
        didi_strided: DiDi-Instruct along paths in the strided order, in which its student is sampled, and the teacher
            as well.
        didi_target: DiDi-Instruct with an autoregressive target, which ``--didi-target.target`` names; the training of
            the target is in no budget.
        mmd: samples against unpaired data in frozen features; our own, see `RolloutMMD`.
        sdtt: rounds of self-distillation (paper: 70 000 steps of 128 sequences, rate 6e-5, EMA 0.9999).
        autoregressive: trained anew within the budget, unless it has a path.
        judge: the first judge, whose path alone is read.
    """

    KNOWN: ClassVar[tuple[str, ...]] = (*MethodsConfig.KNOWN, "didi-paper", "didi-strided", "didi-target", "mmd", "ar")

    methods: tuple[str, ...] = ("sdtt", "didi", "mmd", "ar")
    budget: BudgetKind = "seconds"
    amount: float = 200.0
    autoregressive_share: float = 1.0
    train_seeds: tuple[int, ...] = (0,)
    tasks: tuple[TaskName, ...] = ()
    task_evaluations: float = 60_000.0
    ablation: bool = False
    temperatures: tuple[float, ...] = (0.88, 1.0)
    temperature_spacing: float = 0.12
    temperature_limits: tuple[float, float] = (0.5, 1.6)
    extra_judges: tuple[str, ...] = ()
    texts: tuple[Path, ...] = ()
    bound_sequences: int = 64
    didi_paper: DistillConfig = field(default_factory=lambda: DistillConfig(method=DiDiInstructConfig.paper()))
    didi_strided: DistillConfig = field(default_factory=lambda: in_strides(DistillConfig()))
    didi_target: DistillConfig = field(default_factory=lambda: to_target(DistillConfig()))
    mmd: DistillConfig = field(default_factory=lambda: DistillConfig(method=RolloutMMDConfig(), discriminator=False))
    sdtt: DistillConfig = field(default_factory=paper_sdtt)
    autoregressive: AutoregressiveConfig = field(default_factory=AutoregressiveConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("--autoregressive-share", self.autoregressive_share, exclusive_minimum=0.0)
        check_number("--temperature-spacing", self.temperature_spacing, exclusive_minimum=0.0)
        check_count("--bound-sequences", self.bound_sequences)
        check_number("--task-evaluations", self.task_evaluations, exclusive_minimum=0.0)
        if not self.tasks and self.task_evaluations != type(self).task_evaluations:
            raise ValueError(
                "--task-evaluations is the budget of --tasks, and there are none: name a task, or leave it out"
            )
        if self.tasks and self.ablation:
            raise ValueError("--ablation compares settings on text alone: leave out --tasks")
        if self.tasks and not set(self.methods) & set(MethodsConfig.KNOWN):
            raise ValueError(
                f"--tasks {' '.join(self.tasks)} knows none of --methods {' '.join(self.methods)}: add one of "
                f"{', '.join(MethodsConfig.KNOWN)}"
            )
        for temperature in (*self.temperatures, *self.temperature_limits):
            check_number("--temperatures and --temperature-limits", temperature, exclusive_minimum=0.0)
        if not self.temperatures:
            raise ValueError("--temperatures needs one or more values, got none")
        if not self.train_seeds:
            raise ValueError("--train-seeds needs one or more seeds, got none")
        if self.evaluate.frontier_steps not in self.evaluate.steps:
            raise ValueError(
                f"--evaluate.frontier-steps {self.evaluate.frontier_steps} is not among --evaluate.steps "
                f"{self.evaluate.steps}"
            )

    def trained(self) -> dict[str, DistillConfig | AutoregressiveConfig]:
        """What is trained, by name."""
        if self.ablation:
            return dict(variants(self.didi_paper))
        every: dict[str, DistillConfig | AutoregressiveConfig] = {
            **self.distillations(),
            "didi-paper": self.didi_paper,
            "didi-strided": self.didi_strided,
            "didi-target": self.didi_target,
            "mmd": self.mmd,
            "ar": self.autoregressive,
        }
        return {name: every[name] for name in self.methods}


def distilled(
    base: DistillConfig, method: MethodConfig, *, discriminator: bool, learning_rate: float | None = None
) -> DistillConfig:
    """The same distillation by another method.

    Args:
        base: batch, length of the run and optimisers.
        method: what takes the place of its method.
        discriminator: whether one is trained.
        learning_rate: of the student; that of ``base`` by default.
    """
    made = copy.deepcopy(base)
    made.method, made.discriminator = method, discriminator
    if learning_rate is not None:
        made.student.learning_rate = learning_rate
    return made


def demo() -> ComparisonConfig:
    """Bundled text and teacher; under 40 minutes on two cores."""
    base = TEXT_PRESETS["demo"]()

    return ComparisonConfig(
        name="compare",
        amount=160.0,
        autoregressive_share=3.0,
        distill=base.distill,
        discriminator=replace(base.discriminator, updates=160),
        didi_paper=distilled(base.distill, DiDiInstructConfig.paper(), discriminator=True, learning_rate=1e-4),
        didi_strided=in_strides(base.distill),
        didi_target=to_target(base.distill),
        idlm=distilled(
            base.distill,
            IDLMConfig.recommended(paths={"gradient_steps": 2}, advantages={"group_size": base.distill.batch_size}),
            discriminator=False,
            learning_rate=3e-4,
        ),
        mmd=distilled(
            base.distill,
            RolloutMMDConfig.recommended(paths={"gradient_steps": 2}),
            discriminator=False,
            learning_rate=3e-4,
        ),
        feature_mmd=distilled(base.distill, FeatureMMDConfig(scaled_advantages=True), discriminator=False),
        alpha=distilled(base.distill, AlphaLossConfig(), discriminator=False),
        certainty=distilled(base.distill, CertaintyForcingConfig(), discriminator=False),
        # Text has no one right answer: outcomes are drawn, and no drawn outcome stays as a whole.
        on_policy=distilled(
            base.distill,
            OnPolicyConfig(order="random", teacher_steps=8, temperature=1.0, num_checks=0),
            discriminator=False,
        ),
        sdtt=DistillConfig(
            method=SDTTConfig(teacher_steps=128, rounds=4, step_conditioning=True),
            discriminator=False,
            loop=LoopConfig(num_steps=100, log_every=5, checkpoint_every=50),
            batch_size=24,
            student=OptimizerConfig(learning_rate=3e-4, warmup_steps=5, ema_decay=0.9),
        ),
        autoregressive=AutoregressiveConfig(
            loop=LoopConfig(num_steps=500, log_every=5, checkpoint_every=200), batch_size=16
        ),
        evaluate=EvaluateConfig(
            num_samples=16,
            steps=(4, 8, 16, 32, 64, 128),
            teacher_frontier_steps=(),
            guided_steps=(4, 8, 16),
            rerank_scale=5.0,
            batch_size=16,
        ),
    )


def quick() -> ComparisonConfig:
    """The demo in a few minutes: what the report looks like, and nothing more."""
    config = demo()
    config.name, config.amount = "compare-quick", 12.0
    config.evaluate = EvaluateConfig(
        num_samples=4, steps=(4, 8, 16), teacher_frontier_steps=(), guided_steps=(8,), batch_size=16
    )
    config.discriminator = DiscriminatorConfig(updates=20, pool=64, batch_size=16)
    config.temperatures, config.temperature_spacing, config.bound_sequences = (0.85, 1.0), 0.15, 8
    return config


def scaled(preset: str) -> ComparisonConfig:
    """A preset of the paper: OpenWebText, length 1024, its budget counted in evaluations of the published run."""
    base = TEXT_PRESETS[preset]()

    return ComparisonConfig(
        name=f"compare-{preset}",
        data=base.data,
        teacher=base.teacher,
        judge=base.judge,
        distill=distilled(base.distill, DiDiInstructConfig.recommended(), discriminator=False),
        discriminator=DiscriminatorConfig(updates=2000),
        didi_paper=base.distill,
        idlm=distilled(base.distill, IDLMConfig(), discriminator=False),
        mmd=distilled(base.distill, RolloutMMDConfig(), discriminator=False),
        methods=("sdtt", "didi", "didi-paper", "mmd", "ar"),
        amount=3600.0,
        evaluate=EvaluateConfig(
            num_samples=256,
            steps=(4, 8, 16, 32, 64, 128),
            teacher_frontier_steps=(),
            guided_steps=(8, 16, 32),
        ),
        bound_sequences=256,
    )


PRESETS: dict[str, Callable[[], ComparisonConfig]] = {
    "demo": demo,
    "quick": quick,
    "small": lambda: scaled("small"),
    "medium": lambda: scaled("medium"),
}
