"""The discriminator stage: a discriminator for guided sampling (RGAS), fitted to the finished student.

Re-ranking meets the states of the student's paths. Which positions a path has revealed does not depend on its tokens,
so a finished sample, masked at random to a time of the grid, is such a state: one pool of samples stands for them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn
from tqdm import tqdm

from ... import draws
from ...checks import check_all_counts, check_count, check_number
from ...digests import weights_digest
from ...models import Discriminator, discriminator_accuracy, discriminator_loss
from ...process import MaskedDiffusion
from ...samplers import AncestralSampler
from ...training import LoopConfig, ModuleOptimizer, OptimizerConfig, TrainingLoop, flat_settings, fold_seed
from ...training.stored_settings import Setting
from .corpus import TokenStream
from .discriminator_files import save_discriminator

METRICS_FOLDER = "discriminator"


@dataclass(kw_only=True)
class DiscriminatorConfig:
    """How the discriminator of guided sampling is fitted.

    Args:
        updates: of the discriminator; 0 keeps the one of the distillation (as in the paper), if there is one.
        pool: samples of the student that it learns from, on each process.
        num_steps: of the student's sampler; states are those of its grid.
        batch_size: samples of the student in an update, and as many crops of the text, on each process.
        trainable_blocks: last blocks that are trained (paper: 4).
        label_smoothing: labels become ``1 - s/2`` and ``s/2``.
        optimizer: its optimiser.
        log_every: updates between lines of the metrics.
        checkpoint_every: updates between checkpoints.
    """

    updates: int = 0
    pool: int = 1024
    num_steps: int = 8
    batch_size: int = 32
    trainable_blocks: int = 4
    label_smoothing: float = 0.0
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=1e-3, warmup_steps=20, schedule="linear", weight_decay=0.05
        )
    )
    log_every: int = 10
    checkpoint_every: int = 50

    @property
    def network_evaluations(self) -> float:
        """Passes of one sequence through one network on a process, a backward pass counted as two."""
        return float(self.pool * self.num_steps + self.updates * 2 * self.batch_size * 3) if self.updates else 0.0

    def __post_init__(self) -> None:
        check_count("--discriminator.updates", self.updates, minimum=0)
        counts = ("pool", "num_steps", "batch_size", "trainable_blocks", "log_every", "checkpoint_every")
        check_all_counts(self, *counts, flag="--discriminator")
        check_number("--discriminator.label-smoothing", self.label_smoothing, minimum=0.0, exclusive_maximum=1.0)


class DiscriminatorTrainer:
    """Fit a discriminator to a finished student.

    Args:
        config: how.
        teacher: whose first blocks the discriminator starts from.
        student: whose samples it learns to distinguish from the text.
        stream: the text.
        process: mask and schedule.
        accelerator: device, precision and processes.
        seed: of weights, samples and updates.
    """

    def __init__(
        self,
        config: DiscriminatorConfig,
        teacher: Any,
        student: nn.Module,
        stream: TokenStream,
        process: MaskedDiffusion,
        accelerator: Accelerator,
        seed: int,
    ) -> None:
        self.config = config
        self.student: nn.Module = student.eval()
        self.stream = stream
        self.process = process
        self.accelerator = accelerator
        self.seed = seed
        torch.manual_seed(seed)
        network = Discriminator.from_denoiser(teacher, min(config.trainable_blocks, len(teacher.blocks))).train()
        self.discriminator = ModuleOptimizer(network, config.optimizer, config.updates, accelerator)

    @cached_property
    def pool(self) -> Tensor:
        """Samples of the student, int64 ``[pool, L]``; the same whenever the stage is run."""
        config, device = self.config, self.accelerator.device
        sampler = AncestralSampler(self.process, num_steps=config.num_steps)
        seed = fold_seed("guide", self.seed, self.accelerator.process_index)
        g = Generator(device=device).manual_seed(seed)
        sizes = [len(part) for part in torch.arange(config.pool).split(32)]
        with self.accelerator.autocast():
            drawn = [
                sampler(self.student, (size, self.stream.shape), generator=g, device=device).sequences for size in sizes
            ]
        return torch.cat(drawn)

    def step(self, index: int, generator: Generator) -> dict[str, float]:
        """One update on states of student and text at the same times."""
        config, device = self.config, self.accelerator.device
        chosen = draws.randint(len(self.pool), (config.batch_size,), device=device, generator=generator)
        crops = self.stream.crops(config.batch_size, generator=generator).to(device)
        t = draws.randint(config.num_steps, (config.batch_size,), device=device, generator=generator) / config.num_steps
        states = [self.process.corrupt(x, t, generator=generator) for x in (self.pool[chosen], crops)]
        with self.accelerator.autocast():
            logits = [self.discriminator.network(x_t, t) for x_t in states]
        loss_mask = [torch.ones_like(crops, dtype=torch.bool)] * 2
        loss = discriminator_loss(*logits, *loss_mask, label_smoothing=config.label_smoothing)
        accuracy = discriminator_accuracy(*logits, *loss_mask)
        update = self.discriminator.step(loss)
        metrics = {"loss": float(loss.detach()), "accuracy": float(accuracy), **update}
        return {f"discriminator_{name}": value for name, value in metrics.items()}

    def settings(self) -> dict[str, Setting]:
        """What the discriminator depends on: its configuration, the weights of the student, and the text."""
        bookkeeping = ("discriminator.updates", "discriminator.log_every", "discriminator.checkpoint_every")
        return {
            **flat_settings(self.config, "discriminator", leave_out=bookkeeping),
            "student": weights_digest(self.student),
            **self.stream.settings(),
        }

    def fit(self, directory: Path, *, make_bar: Callable[..., tqdm] = tqdm) -> list[dict[str, float]]:
        """Weights go to ``directory/student/discriminator``, metrics and checkpoints to ``directory/discriminator``.

        Returns:
            The logged metrics.
        """
        config, accelerator = self.config, self.accelerator
        history = TrainingLoop(
            LoopConfig(
                num_steps=config.updates,
                seed=self.seed,
                log_every=config.log_every,
                checkpoint_every=config.checkpoint_every,
            ),
            directory / METRICS_FOLDER,
            {"discriminator": self.discriminator},
            self.step,
            label="discriminator",
            shown=("discriminator_accuracy",),
            rank=accelerator.process_index,
            device=accelerator.device,
            settings=self.settings(),
            make_bar=make_bar,
        ).run()
        save_discriminator(self.discriminator, directory / "student" / "discriminator")
        accelerator.wait_for_everyone()
        return history
