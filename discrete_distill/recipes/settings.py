"""Settings of the text recipes, as dataclasses that become flags, and their presets."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..models import DiTConfig
from ..training import LoopConfig, OptimizerConfig


@dataclass(kw_only=True)
class DataConfig:
    """Text and its tokens.

    Args:
        source: 'bundled', a UTF-8 text file (one document a line), or a folder of .txt files.
        tokenizer: 'bundled', 'gpt2', or a path to a tokenizer.json.
        length: tokens per sequence (paper: 1024).
    """

    source: str = "bundled"
    tokenizer: str = "bundled"
    length: int = 64


@dataclass(kw_only=True)
class TeacherConfig:
    """The masked diffusion teacher.

    Args:
        path: folder of a trained teacher, a hub name, or 'bundled'.
        model: its shape, where it is trained here.
        loop: how long it is trained.
        optimizer: how.
        batch_size: sequences per update (paper: 512).
        evaluate_every: updates between measurements of the held-out bound.
    """

    path: str = "bundled"
    model: DiTConfig = field(
        default_factory=lambda: DiTConfig(
            vocab_size=2048,
            max_length=64,
            hidden_size=192,
            num_layers=6,
            num_heads=3,
            cond_size=32,
            dropout=0.0,
        )
    )
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(num_steps=8000, log_every=50, checkpoint_every=250, keep_checkpoints=1)
    )
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=2e-3,
            betas=(0.9, 0.98),
            weight_decay=0.1,
            warmup_steps=300,
            schedule="cosine",
            ema_decay=0.998,
        )
    )
    batch_size: int = 64
    evaluate_every: int = 500
