"""Settings that all recipes have, as a dataclass that becomes flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...checks import check_count
from .corpus import DataConfig
from .discriminator import DiscriminatorConfig
from .distill_config import DistillConfig
from .environment import Matmul, Precision
from .evaluation import EvaluateConfig
from .teacher import TeacherConfig

MAX_THREADS = 1024


@dataclass(kw_only=True)
class RecipeConfig:
    """From a corpus to a few-step student of it.

    Args:
        name: folder of this run, under ``output``.
        output: where runs go.
        seed: of the distillation; the same seed gives the same student, bit for bit, on a CPU.
        precision: of the networks: fp32, bf16 autocast, or auto (bf16 where the device has it).
        matmul: fp32 matrix products in training of teacher, student and discriminator: exact, or tf32 where the GPU has
            it. Judges, samples and figures are exact whatever is chosen.
        threads: of the CPU; 0 leaves PyTorch's choice.
        dry_run: only print what would run, the memory that each device needs, and the time expected.
        data: corpus and tokens.
        teacher: the model that is distilled.
        distill: how the student is made.
        discriminator: how the discriminator of guided sampling is fitted to the finished student.
        evaluate: what is measured.
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
    distill: DistillConfig = field(default_factory=DistillConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(f"--name is the name of a folder under --output, without separators, got {self.name!r}")
        check_count("--threads", self.threads, minimum=0)
        if self.threads > MAX_THREADS:
            raise ValueError(f"--threads must be at most {MAX_THREADS}, got {self.threads}")
        check_count("--seed", self.seed, minimum=-(2**63))

    @property
    def directory(self) -> Path:
        """``output / name``."""
        return self.output / self.name
