"""One network under training: optimiser, learning-rate schedule, clipping, exponential moving average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule.

    Args:
        learning_rate: peak, per update (paper: 1e-6 student, 1e-5 discriminator).
        betas: Adam's averages (paper: 0.9, 0.999).
        weight_decay: decoupled, per update (paper: 0).
        warmup_steps: updates of linear warm-up (paper: 1000).
        schedule: what follows: constant, or a cosine or a line down to zero (paper: constant).
        gradient_clip: greatest gradient norm; 0 for none (paper: 1.0).
        ema_decay: of the averaged weights, per update; 0 for none (paper: 0.999).
    """

    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    gradient_clip: float = 1.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0.0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")


class Learner:
    """Takes a loss and makes one update of one network; one whose gradient is not finite is skipped, counted.

    Args:
        module: the network, on its device; only parameters that require a gradient are trained.
        config: optimiser settings.
        num_steps: updates planned, which the schedule spreads over.
        accelerator: device, precision and processes.

    Raises:
        ValueError: if the accelerator's precision is fp16, whose scaled losses are not unscaled here.
    """

    def __init__(self, module: nn.Module, config: OptimizerConfig, num_steps: int, accelerator: Accelerator) -> None:
        from transformers.optimization import get_scheduler

        if accelerator.scaler is not None:
            raise ValueError("mixed precision fp16 is not supported; use bf16, or no mixed precision")
        self.module = module
        self.config = config
        self.accelerator = accelerator
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
        self.scheduler = get_scheduler(name, self.optimizer, config.warmup_steps, num_steps)
        self.average: AveragedModel | None = None
        if config.ema_decay:
            average_fn = get_ema_multi_avg_fn(config.ema_decay)
            self.average = AveragedModel(module, multi_avg_fn=average_fn, use_buffers=False)
        self.skipped = 0

    @property
    def averaged(self) -> nn.Module:
        """The network to sample from: the moving average where there is one, else the network itself."""
        return self.module if self.average is None else self.average.module

    def step(self, loss: Tensor) -> dict[str, float]:
        """Backward, clip, update, average. Returns the norm before clipping and the learning rate."""
        self.accelerator.backward(loss)
        self._average_gradients()
        limit = self.config.gradient_clip or float("inf")
        norm = float(nn.utils.clip_grad_norm_(self.parameters, limit))
        rate = self.scheduler.get_last_lr()[0]
        if norm == norm and norm != float("inf"):
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.module)
        else:
            self.skipped += 1
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"gradient_norm": norm, "learning_rate": rate, "skipped_updates": float(self.skipped)}

    def _average_gradients(self) -> None:
        if self.accelerator.num_processes == 1:
            return
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact continuation needs."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; strict."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.skipped = state["skipped"]
