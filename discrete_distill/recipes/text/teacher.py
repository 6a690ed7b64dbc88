"""The teacher stage: train a masked diffusion model by its likelihood bound."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from huggingface_hub.errors import HfHubHTTPError
from torch import Generator, Tensor, nn

from ...checks import check_count
from ...models import DiT, DiTConfig, load_denoiser
from ...process import MaskedDiffusion, evaluation_mode
from ...training import LoopConfig, ModuleOptimizer, OptimizerConfig, TrainingLoop, flat_settings, fold_seed
from ..common.assets import BUNDLED, asset
from ..common.stream_settings import stream_settings
from .corpus import TokenStream


@dataclass(kw_only=True)
class TeacherConfig:
    """The masked diffusion teacher.

    Args:
        path: folder, file of weights or hub name of a trained teacher in any layout that `load_denoiser` reads, or
            'bundled'.
        init: a teacher to train further (as ``path``), of the same shape but for its length; empty to start anew.
        model: its shape, where it is trained here.
        loop: how long it is trained.
        optimizer: how.
        batch_size: sequences per update (paper: 512).
        evaluate_every: updates between measurements of the held-out bound.
        half_precision: write the weights in fp16 (they are read back into fp32).
    """

    path: str = "bundled"
    init: str = ""
    model: DiTConfig = field(
        default_factory=lambda: DiTConfig(
            vocab_size=2048,
            max_length=128,
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
    half_precision: bool = True

    def __post_init__(self) -> None:
        check_count("--teacher.batch-size", self.batch_size)
        check_count("--teacher.evaluate-every", self.evaluate_every)


def train_teacher(
    config: TeacherConfig,
    streams: dict[str, TokenStream],
    process: MaskedDiffusion,
    accelerator: Accelerator,
    directory: Path,
) -> DiT:
    """Train on the ``train`` split; the averaged network is written to ``directory`` and returned as written."""
    torch.manual_seed(config.loop.seed)
    network = initial_network(config).to(accelerator.device)
    module_optimizer = ModuleOptimizer(network, config.optimizer, config.loop.num_steps, accelerator)
    heldout = streams["heldout"].packed(512).to(accelerator.device)

    def step(index: int, generator: Generator) -> dict[str, float]:
        x = streams["train"].crops(config.batch_size, generator=generator).to(accelerator.device)
        with accelerator.autocast():
            loss = process.nelbo(module_optimizer.network, x, by="count", generator=generator).loss
        metrics = {"loss": float(loss.detach()), **module_optimizer.step(loss)}
        if (index + 1) % config.evaluate_every == 0 or index + 1 == config.loop.num_steps:
            metrics["heldout_nats_per_token"] = heldout_nelbo(module_optimizer.averaged, process, heldout, accelerator)
        return metrics

    TrainingLoop(
        config.loop,
        directory,
        {"teacher": module_optimizer},
        step,
        label="teacher",
        rank=accelerator.process_index,
        device=accelerator.device,
        shown=("loss", "heldout_nats_per_token"),
        settings={
            **flat_settings(config, "teacher", leave_out=("teacher.loop", "teacher.path", "teacher.evaluate_every")),
            **stream_settings(streams["train"]),
        },
    ).run()
    if accelerator.is_main_process:
        trained = copy.deepcopy(cast(DiT, module_optimizer.averaged))
        (trained.half() if config.half_precision else trained).save_pretrained(directory)
    accelerator.wait_for_everyone()
    return load_teacher(str(directory)).to(accelerator.device)


def initial_network(config: TeacherConfig) -> DiT:
    """A fresh network, or one with the weights of ``init``.

    Raises:
        FileNotFoundError: if ``init`` cannot be had.
        ValueError: if its weights do not fit ``model``.
    """
    network = DiT(config.model)
    if config.init:
        try:
            network.load_state_dict(load_teacher(config.init).state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"the weights of --teacher.init {config.init} are not of the shape --teacher.model"
            ) from error
    return network


def load_teacher(path: str) -> DiT:
    """Load the shipped teacher, or one in any layout that `load_denoiser` reads; in fp32, in evaluation mode.

    Args:
        path: folder, file of weights, hub name, or 'bundled'.

    Raises:
        FileNotFoundError: if it cannot be had, with the flag that names another.
        ValueError: if it is damaged, or no network of MDLM's kind.
    """
    missing = f"no teacher at {path!r}: give --teacher.path a folder with config.json and model.safetensors"
    if not path:
        raise FileNotFoundError(f"{missing}, or train one with the teacher stage")
    try:
        loaded = load_denoiser(teacher_location(path))
    except (OSError, HfHubHTTPError) as error:
        raise FileNotFoundError(missing) from error
    if not isinstance(loaded, DiT):
        raise ValueError(f"{path} is a {type(loaded).__name__}; give --teacher.path a network of MDLM's kind")
    return loaded


def teacher_location(path: str) -> str:
    """Where the weights of a teacher are: ``path``, or the folder of the shipped one."""
    return str(asset("teacher")) if path == BUNDLED else path


@torch.no_grad()
def heldout_nelbo(
    denoiser: nn.Module, process: MaskedDiffusion, x: Tensor, accelerator: Accelerator, repeats: int = 4
) -> float:
    """Likelihood bound of held-out sequences, nats per token, on masks that are the same at every call."""
    generator = Generator(device=x.device).manual_seed(fold_seed("heldout"))
    total, tokens = 0.0, 0
    with evaluation_mode(denoiser), accelerator.autocast():
        for chunk in x.repeat(repeats, 1).split(128):
            out = process.nelbo(denoiser, chunk, by="count", generator=generator)
            total += float(out.nats.sum())
            tokens += int(out.num_tokens.sum())
    return total / tokens
