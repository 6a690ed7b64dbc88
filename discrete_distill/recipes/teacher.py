"""The teacher stage: train a masked diffusion model by its likelihood bound."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn

from ..models import DiT
from ..process import MaskedDiffusion
from ..training import Learner, TrainingLoop, fold_seed
from .corpus import TokenStream
from .settings import TeacherConfig


def train_teacher(
    config: TeacherConfig,
    streams: dict[str, TokenStream],
    process: MaskedDiffusion,
    accelerator: Accelerator,
    directory: Path,
) -> nn.Module:
    """Train on the ``train`` split; the averaged network is written to ``directory`` and returned."""
    torch.manual_seed(config.loop.seed)
    learner = Learner(DiT(config.model).to(accelerator.device), config.optimizer, config.loop.num_steps, accelerator)
    heldout = streams["heldout"].packed(512).to(accelerator.device)

    def step(index: int, generator: Generator) -> dict[str, float]:
        x = streams["train"].crops(config.batch_size, generator=generator).to(accelerator.device)
        with accelerator.autocast():
            loss = process.nelbo(learner.module, x, by="count", generator=generator).loss
        metrics = {"loss": float(loss), **learner.step(loss)}
        if (index + 1) % config.evaluate_every == 0:
            metrics["heldout_nats_per_token"] = heldout_nelbo(learner.averaged, process, heldout, accelerator)
        return metrics

    TrainingLoop(
        config.loop,
        directory,
        {"teacher": learner},
        step,
        label="teacher",
        rank=accelerator.process_index,
        device=accelerator.device,
        shown=("loss", "heldout_nats_per_token"),
    ).run()
    teacher = learner.averaged.eval()
    if accelerator.is_main_process:
        teacher.save_pretrained(directory)
    return teacher


@torch.no_grad()
def heldout_nelbo(
    denoiser: nn.Module, process: MaskedDiffusion, x: Tensor, accelerator: Accelerator, repeats: int = 4
) -> float:
    """Likelihood bound of held-out sequences, nats per token, on masks that are the same at every call."""
    generator = Generator(device=x.device).manual_seed(fold_seed("heldout"))
    was_training = denoiser.training
    denoiser.eval()
    total, tokens = 0.0, 0
    for chunk in x.repeat(repeats, 1).split(128):
        with accelerator.autocast():
            out = process.nelbo(denoiser, chunk, by="count", generator=generator)
        total += float(out.nats.sum())
        tokens += int(out.num_tokens.sum())
    denoiser.train(was_training)
    return total / tokens
