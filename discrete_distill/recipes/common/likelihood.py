"""Training of a network by the likelihood of text: settings, the loop, and its held-out figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from accelerate import Accelerator
from torch import Generator, Tensor, nn

from ...checks import check_count
from ...training import LoopConfig, ModuleOptimizer, OptimizerConfig, TrainingLoop, flat_settings
from ...training.stored_settings import Setting
from .corpus import SequenceStream


def from_scratch(*, warmup_steps: int, ema_decay: float, learning_rate: float = 2e-3) -> OptimizerConfig:
    """The optimiser of small networks that start from random weights."""
    return OptimizerConfig(
        learning_rate=learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.1,
        warmup_steps=warmup_steps,
        schedule="cosine",
        ema_decay=ema_decay,
    )


@dataclass(kw_only=True)
class LikelihoodConfig:
    """A network that is trained by the likelihood of text, or read from disk.

    Args:
        path: of a trained one.
        loop: how long it is trained.
        optimizer: how.
        batch_size: sequences per update.
    """

    stage: ClassVar[str]

    path: str
    loop: LoopConfig
    optimizer: OptimizerConfig
    batch_size: int

    def __post_init__(self) -> None:
        check_count(f"--{self.stage}.batch-size", self.batch_size)


@dataclass(kw_only=True)
class MeasuredLikelihoodConfig(LikelihoodConfig):
    """The same, with held-out text measured on the way.

    Args:
        evaluate_every: updates between measurements of held-out nats per token.
    """

    evaluate_every: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(f"--{self.stage}.evaluate-every", self.evaluate_every)


def train_by_likelihood(
    config: MeasuredLikelihoodConfig,
    network: nn.Module,
    stream: SequenceStream,
    loss: Callable[[nn.Module, Tensor, Generator], Tensor],
    heldout: Callable[[nn.Module], float],
    accelerator: Accelerator,
    directory: Path,
    *,
    made_with: dict[str, Setting],
) -> nn.Module:
    """Train on fresh random crops of a stream; metrics and checkpoints go to ``directory``.

    Args:
        config: how.
        network: on the device of the accelerator.
        stream: text that it learns.
        loss: of a batch of token ids, int64 ``[B, L]``, in nats per token.
        heldout: nats per token of held-out text.
        accelerator: device, precision and processes.
        directory: of the run.
        made_with: what else the result depends on, by name.

    Returns:
        The network, with its moving average where there is one.
    """
    module_optimizer = ModuleOptimizer(network, config.optimizer, config.loop.num_steps, accelerator)

    def step(index: int, generator: Generator) -> dict[str, float]:
        x = stream.crops(config.batch_size, generator=generator).to(accelerator.device)
        with accelerator.autocast():
            value = loss(module_optimizer.network, x, generator)
        metrics = {"loss": float(value.detach()), **module_optimizer.step(value)}
        if (index + 1) % config.evaluate_every == 0 or index + 1 == config.loop.num_steps:
            metrics["heldout_nats_per_token"] = heldout(module_optimizer.averaged)
        return metrics

    label = config.stage
    bookkeeping = (f"{label}.loop", f"{label}.path", f"{label}.evaluate_every")
    TrainingLoop(
        config.loop,
        directory,
        {label: module_optimizer},
        step,
        label=label,
        rank=accelerator.process_index,
        device=accelerator.device,
        shown=("loss", "heldout_nats_per_token"),
        settings={**flat_settings(config, label, leave_out=bookkeeping), **made_with},
    ).run()
    return module_optimizer.averaged
