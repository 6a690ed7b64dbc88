"""Settings of the text recipe as dataclasses that become flags, and the presets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ...distillation.methods import DiDiInstructConfig
from ...models import DiTConfig
from ...training import LoopConfig, OptimizerConfig, ParallelConfig
from ..common.corpus import DataConfig
from ..common.discriminator import DiscriminatorConfig
from ..common.distill_config import DistillConfig
from ..common.evaluation import EvaluateConfig
from ..common.likelihood import from_scratch
from ..common.sample import SampleConfig
from ..common.settings import RecipeConfig
from ..common.teacher import TeacherConfig
from .judge import JudgeConfig


@dataclass(kw_only=True)
class TextConfig(RecipeConfig):
    """From a text to a few-step student of it.

    Args:
        judge: the model that prices samples.
        sample: what the sampling stage draws.
    """

    judge: JudgeConfig = field(default_factory=JudgeConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)


def demo() -> TextConfig:
    """Bundled text, tokenizer, teacher and judge; ten minutes on two cores."""
    return TextConfig(
        distill=DistillConfig(
            method=DiDiInstructConfig.recommended(advantages={"group_size": 24}, credit={"window": 0}),
            loop=LoopConfig(num_steps=40, log_every=5, checkpoint_every=20),
            batch_size=24,
            parallel=ParallelConfig(activation_checkpointing=True),
            student=OptimizerConfig(learning_rate=3e-4, warmup_steps=5, schedule="cosine", ema_decay=0.9),
            ratio=OptimizerConfig(learning_rate=1e-3, warmup_steps=20),
            discriminator=False,
        ),
        # Re-ranking gains nothing here at five times the evaluations; 160 updates fit a discriminator for it.
        discriminator=DiscriminatorConfig(updates=0, pool=768, batch_size=24),
        evaluate=EvaluateConfig(
            num_samples=32,
            steps=(2, 4, 8, 16),
            teacher_frontier_steps=(32,),
            teacher_temperatures=(0.85, 0.95),
            student_temperatures=(0.8, 0.9, 1.0),
            rerank_scale=5.0,
            batch_size=32,
        ),
    )


def demo_paper() -> TextConfig:
    """The published method on the demo's text and teacher, for comparison; its rate is scaled up to the small model."""
    config = demo()
    config.name = "demo-paper"
    config.distill.method = DiDiInstructConfig.paper()
    config.distill.discriminator, config.discriminator.updates = True, 0
    config.distill.student.learning_rate = 1e-4
    return config


def demo_long() -> TextConfig:
    """The demo, given more than an hour: many more updates, the rate of the auxiliary falling."""
    config = demo()
    config.name = "demo-long"
    config.distill.loop = LoopConfig(num_steps=500, log_every=5, checkpoint_every=20)
    config.distill.parallel = ParallelConfig()
    config.distill.student.ema_decay = 0.98
    config.distill.ratio.schedule = "cosine"
    config.discriminator = DiscriminatorConfig(updates=480, pool=2048)
    config.evaluate = EvaluateConfig(
        num_samples=32,
        steps=(2, 4, 8, 16, 32, 64),
        teacher_temperatures=(0.85, 0.95),
        student_temperatures=(0.8, 0.9, 1.0, 1.1),
        rerank_scale=10.0,
        batch_size=32,
    )
    return config


def demo_target() -> TextConfig:
    """The demo, its student held against an autoregressive network: the bundled teacher, trained further to read by
    blocks of one token. Half an hour on two cores."""
    config = demo()
    config.name = "demo-target"
    config.teacher.init = "bundled"
    config.teacher.model = replace(config.teacher.model, block_length=1, dropout=0.1)
    config.teacher.loop = LoopConfig(num_steps=650, log_every=10, checkpoint_every=100, keep_checkpoints=1)
    config.teacher.optimizer = from_scratch(learning_rate=1e-3, warmup_steps=50, ema_decay=0.99)
    config.teacher.batch_size, config.teacher.evaluate_every = 16, 325
    config.distill = to_target(config.distill)
    config.distill.loop = LoopConfig(num_steps=115, log_every=5, checkpoint_every=20)
    return config


def demo_strided() -> TextConfig:
    """The demo along paths in the strided order, in which its student is sampled: ten minutes on two cores."""
    config = demo()
    config.name = "demo-strided"
    config.distill = in_strides(config.distill)
    config.evaluate = replace(config.evaluate, teacher_temperatures=(0.85, 0.95, 1.05))
    return config


def in_strides(base: DistillConfig) -> DistillConfig:
    """The same distillation by DiDi-Instruct as recommended, along paths in the strided order."""
    method = DiDiInstructConfig.recommended(
        paths={"order": "strided"}, advantages={"group_size": base.batch_size}, credit={"window": 0}
    )
    return replace(copy.deepcopy(base), method=method, discriminator=False)


def to_target(base: DistillConfig) -> DistillConfig:
    """The same distillation, its student of eight steps held against an autoregressive target."""
    method = DiDiInstructConfig.autoregressive(paths={"num_steps": (8,)}, advantages={"group_size": base.batch_size})
    return replace(copy.deepcopy(base), method=method, discriminator=False)


def paper(name: str, *, hidden_size: int, num_layers: int, num_heads: int, teacher: str) -> TextConfig:
    """The settings of arXiv 2509.25035 on OpenWebText: length 1024, GPT-2 tokenizer, GPT-2 Large as judge."""
    return TextConfig(
        name=name,
        data=DataConfig(source="openwebtext", tokenizer="gpt2", length=1024),
        teacher=TeacherConfig(
            path=teacher,
            model=DiTConfig(
                vocab_size=50258,
                max_length=1024,
                hidden_size=hidden_size,
                num_layers=num_layers,
                num_heads=num_heads,
            ),
            loop=LoopConfig(num_steps=1_000_000, checkpoint_every=5000),
            optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=2500, ema_decay=0.9999),
            batch_size=512,
            half_precision=False,
        ),
        judge=JudgeConfig(path="gpt2-large"),
        distill=DistillConfig(
            method=DiDiInstructConfig.paper(),
            loop=LoopConfig(num_steps=10_000, log_every=20, checkpoint_every=500),
            batch_size=16,
            student=OptimizerConfig(learning_rate=1e-6, warmup_steps=1000, ema_decay=0.999),
            ratio=OptimizerConfig(learning_rate=1e-5, warmup_steps=1000),
        ),
        evaluate=EvaluateConfig(
            steps=(8, 16, 32, 64, 128), guided_steps=(8, 16, 32), teacher_frontier_steps=(128,), tilt_fraction=0.5
        ),
    )


PRESETS: dict[str, Callable[[], TextConfig]] = {
    "demo": demo,
    "demo-paper": demo_paper,
    "demo-long": demo_long,
    "demo-strided": demo_strided,
    "demo-target": demo_target,
    "small": lambda: paper("small", hidden_size=768, num_layers=12, num_heads=12, teacher="kuleshov-group/mdlm-owt"),
    "medium": lambda: paper("medium", hidden_size=1024, num_layers=24, num_heads=16, teacher=""),
    "large": lambda: paper("large", hidden_size=1280, num_layers=36, num_heads=20, teacher=""),
}
