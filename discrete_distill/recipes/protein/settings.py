"""Settings of the protein recipe, and its presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ...checks import check_count
from ...distillation.methods import DiDiInstructConfig
from ...models import DiTConfig
from ...training import LoopConfig, OptimizerConfig
from ..common.corpus import DataConfig
from ..common.distill_config import DistillConfig
from ..common.evaluation import EvaluateConfig
from ..common.likelihood import from_scratch
from ..common.sample import SampleConfig
from ..common.settings import RecipeConfig
from ..common.teacher import TeacherConfig


@dataclass(kw_only=True)
class ProteinConfig(RecipeConfig):
    """From protein sequences to a few-step model of them.

    Args:
        ngram: order of the judge, an n-gram model of the judge's split.
        minimum_residues: shorter pieces of a window are left out of the figures.
        training_sequences: maximum number of training sequences that novelty is measured against.
        fold: folder or hub name of ESMFold, for pLDDT; empty for none.
        dplm: folder or hub name of DPLM, which is then sampled beside teacher and student; empty for none.
        sample: what the sampling stage draws.
    """

    ngram: int = 3
    minimum_residues: int = 20
    training_sequences: int = 100_000
    fold: str = ""
    dplm: str = ""
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("--ngram", self.ngram)
        check_count("--minimum-residues", self.minimum_residues, minimum=2)
        check_count("--training-sequences", self.training_sequences)


def demo() -> ProteinConfig:
    """Bundled sequences and teacher."""
    return ProteinConfig(
        name="protein",
        data=DataConfig(length=128),
        teacher=TeacherConfig(
            model=DiTConfig(
                vocab_size=22, max_length=128, hidden_size=96, num_layers=4, num_heads=3, cond_size=16, dropout=0.0
            ),
            loop=LoopConfig(num_steps=600, log_every=20, checkpoint_every=100, keep_checkpoints=1),
            optimizer=from_scratch(learning_rate=3e-3, warmup_steps=100, ema_decay=0.99),
            batch_size=32,
            evaluate_every=200,
        ),
        distill=DistillConfig(
            method=DiDiInstructConfig.recommended(
                paths={"gradient_steps": 2}, credit={"corruption": {"num_draws": 2}}, log_ratio={"updates": 2}
            ),
            loop=LoopConfig(num_steps=60, log_every=5, checkpoint_every=20),
            batch_size=16,
            student=OptimizerConfig(learning_rate=3e-4, warmup_steps=5, schedule="cosine", ema_decay=0.9),
            ratio=OptimizerConfig(learning_rate=1e-3, warmup_steps=20),
            discriminator_every=4,
        ),
        evaluate=EvaluateConfig(
            num_samples=32, steps=(8, 16, 32), guided_steps=(8,), frontier_steps=8, teacher_frontier_steps=(32,)
        ),
    )


PRESETS: dict[str, Callable[[], ProteinConfig]] = {"demo": demo}
