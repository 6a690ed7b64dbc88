"""Settings of the text recipe as dataclasses that become flags, and the presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ...checks import check_count
from ...distillation.methods import DiDiInstructConfig
from ...models import DiTConfig
from ...training import LoopConfig, OptimizerConfig, ParallelConfig
from ..common.environment import Matmul, Precision
from .corpus import DataConfig
from .distill import DistillConfig
from .evaluate import EvaluateConfig
from .guide import GuideConfig
from .judge import JudgeConfig
from .sample import SampleConfig
from .teacher import TeacherConfig

MAX_THREADS = 1024


@dataclass(kw_only=True)
class RecipeConfig:
    """From a text to a few-step student of it.

    Args:
        name: folder of this run, under ``output``.
        output: where runs go.
        seed: of the distillation; the same seed gives the same student, bit for bit, on a CPU.
        precision: of the networks: fp32, bf16 autocast, or auto (bf16 where the device has it).
        matmul: fp32 matrix products in training of teacher, student and guide: exact, or tf32 where the GPU has it.
            Judges, samples and figures are exact whatever is chosen.
        threads: of the CPU; 0 leaves PyTorch's choice.
        dry_run: only print what would run, the memory that each device needs, and the time expected.
        data: text and tokens.
        teacher: the model that is distilled.
        judge: the model that prices samples.
        distill: how the student is made.
        guide: how the discriminator that guides sampling is fitted to the finished student.
        evaluate: what is measured.
        sample: what the sampling stage draws.
    """

    name: str = "demo"
    output: Path = Path("runs")
    seed: int = 0
    precision: Precision = "auto"
    matmul: Matmul = "exact"
    threads: int = 0
    dry_run: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    guide: GuideConfig = field(default_factory=GuideConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(f"--name is the name of a folder under --output, without separators, got {self.name!r}")
        check_count("--threads", self.threads, least=0)
        if self.threads > MAX_THREADS:
            raise ValueError(f"--threads must be at most {MAX_THREADS}, got {self.threads}")
        check_count("--seed", self.seed, least=-(2**63))

    @property
    def directory(self) -> Path:
        """``output / name``."""
        return self.output / self.name


def demo() -> RecipeConfig:
    """Bundled text, tokenizer, teacher and judge; ten minutes on two cores."""
    return RecipeConfig(
        distill=DistillConfig(
            method=DiDiInstructConfig.recommended(advantages={"group_size": 24}, credit={"window": 0}),
            loop=LoopConfig(num_steps=40, log_every=5, checkpoint_every=20),
            batch_size=24,
            parallel=ParallelConfig(activation_checkpointing=True),
            student=OptimizerConfig(learning_rate=3e-4, warmup_steps=5, schedule="cosine", ema_decay=0.9),
            ratio=OptimizerConfig(learning_rate=1e-3, warmup_steps=20),
            discriminator=False,
        ),
        guide=GuideConfig(updates=160, pool=768, batch_size=24),
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


def demo_paper() -> RecipeConfig:
    """The published method on the demo's text and teacher, for comparison; its rate is scaled up to the small model."""
    config = demo()
    config.name = "demo-paper"
    config.distill.method = DiDiInstructConfig.paper()
    config.distill.discriminator, config.guide.updates = True, 0
    config.distill.student.learning_rate = 1e-4
    return config


def demo_long() -> RecipeConfig:
    """The demo, given more than an hour: many more updates, the rate of the auxiliary falling, and a longer guide."""
    config = demo()
    config.name = "demo-long"
    config.distill.loop = LoopConfig(num_steps=500, log_every=5, checkpoint_every=20)
    config.distill.parallel = ParallelConfig()
    config.distill.student.ema_decay = 0.98
    config.distill.ratio.schedule = "cosine"
    config.guide = GuideConfig(updates=480, pool=2048)
    config.evaluate = EvaluateConfig(
        num_samples=32,
        steps=(2, 4, 8, 16, 32, 64),
        teacher_temperatures=(0.85, 0.95),
        student_temperatures=(0.8, 0.9, 1.0, 1.1),
        rerank_scale=10.0,
        batch_size=32,
    )
    return config


def paper(name: str, *, hidden_size: int, num_layers: int, num_heads: int, teacher: str) -> RecipeConfig:
    """The settings of arXiv 2509.25035 on OpenWebText: length 1024, GPT-2 tokenizer, GPT-2 Large as judge."""
    return RecipeConfig(
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


PRESETS: dict[str, Callable[[], RecipeConfig]] = {
    "demo": demo,
    "demo-paper": demo_paper,
    "demo-long": demo_long,
    "small": lambda: paper("small", hidden_size=768, num_layers=12, num_heads=12, teacher="kuleshov-group/mdlm-owt"),
    "medium": lambda: paper("medium", hidden_size=1024, num_layers=24, num_heads=16, teacher=""),
    "large": lambda: paper("large", hidden_size=1280, num_layers=36, num_heads=20, teacher=""),
}
