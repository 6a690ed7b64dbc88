"""One network under training: optimiser, learning-rate schedule, clipping, exponential moving average."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..checks import check_count, check_number
from ..digests import tensors_digest
from ..distributed.collectives import mean_over_processes
from ..distributed.parallel import ParallelConfig, gathered, replicate, save_memory, shard, sharded_like, without_sync
from ..models.lora import has_lora
from ..models.shared_copy import shared_copy
from ..models.unused_weights import has_unused_weights
from .stored_settings import flat_settings, refuse_changes

Schedule = Literal["constant", "cosine", "linear"]


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule.

    Args:
        learning_rate: peak, per update (paper: 1e-6 student, 1e-5 discriminator).
        betas: Adam's averages (paper: 0.9, 0.999).
        weight_decay: decoupled, per update (paper: 0).
        warmup_steps: updates of linear warm-up (paper: 1000).
        schedule: what follows: constant, or a cosine or a line down to zero (paper: constant).
        gradient_clip: maximum gradient norm; 0 for none (paper: 1.0).
        ema_decay: of the averaged weights, per update; 0 for none (paper: 0.999).

    Raises:
        ValueError: if a number is out of range or not finite.
        TypeError: if it is not a number.

    Examples:
        >>> from accelerate import Accelerator
        >>> config = OptimizerConfig(learning_rate=1e-3, warmup_steps=2)
        >>> optimizer = ModuleOptimizer(student, config, 100, Accelerator(cpu=True))
        >>> [optimizer.step(process.nelbo(student, data).loss)["learning_rate"] for _ in range(3)]
        [0.0, 0.0005, 0.001]
    """

    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_steps: int = 100
    schedule: Schedule = "constant"
    gradient_clip: float = 1.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        check_number("learning_rate", self.learning_rate, exclusive_minimum=0.0)
        check_number("weight_decay", self.weight_decay, minimum=0.0)
        check_number("gradient_clip", self.gradient_clip, minimum=0.0)
        check_number("ema_decay", self.ema_decay, minimum=0.0, exclusive_maximum=1.0)
        check_count("warmup_steps", self.warmup_steps, minimum=0)
        for beta in self.betas:
            check_number("betas", beta, minimum=0.0, exclusive_maximum=1.0)
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule is one of {get_args(Schedule)}, got {self.schedule!r}")


class ModuleOptimizer:
    """Takes a loss and makes one update of one network; one whose loss or gradient is not finite is skipped, counted.

    Args:
        module: the network, on its device, with the same weights on every process; only parameters that require a
            gradient are trained.
        config: optimiser settings.
        num_steps: updates planned, which the schedule spreads over.
        accelerator: device, precision and processes.
        parallel: how the network lies on several processes, and what saves memory.

    Attributes:
        network: what losses call: ``module``, ready for several processes.
        has_gradient: whether `backward` was called since the last update.

    Raises:
        ValueError: if the accelerator's precision is fp16, whose scaled losses are not unscaled here, or if a
            parameter of the network is not finite.

    Examples:
        >>> from accelerate import Accelerator
        >>> config = OptimizerConfig(ema_decay=0.999, warmup_steps=0)
        >>> optimizer = ModuleOptimizer(student, config, num_steps=100, accelerator=Accelerator(cpu=True))
        >>> optimizer.step(process.nelbo(student, data, generator=generator).loss)
        {'gradient_norm': ..., 'learning_rate': 0.0003, 'skipped_updates': 0.0}
        >>> samples = AncestralSampler(process, num_steps=4)(optimizer.averaged, shape=(2, 16), generator=generator)
    """

    def __init__(
        self,
        module: nn.Module,
        config: OptimizerConfig,
        num_steps: int,
        accelerator: Accelerator,
        parallel: ParallelConfig | None = None,
    ) -> None:
        from transformers.optimization import get_scheduler

        if accelerator.scaler is not None:
            raise ValueError("mixed precision fp16 is not supported; use bf16, or no mixed precision")
        _check_finite(module)
        self.module = module
        self.config = config
        self.accelerator = accelerator
        self.average: AveragedModel | None = None
        self._template: nn.Module | None = None
        if config.ema_decay:
            average_fn = get_ema_multi_avg_fn(config.ema_decay)
            adapted = has_lora(module)  # then the frozen weights are shared with the average
            averaged = nn.Identity() if adapted else module
            self.average = AveragedModel(averaged, multi_avg_fn=average_fn, use_buffers=False)
            if adapted:
                trained = [each for each in module.modules() if any(p.requires_grad for p in each.parameters(False))]
                self.average.module = shared_copy(module, copied=trained)
        self.network = self._ready(parallel or ParallelConfig())
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=accelerator.device.type == "cuda",
        )
        name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
        self.scheduler = get_scheduler(name, self.optimizer, config.warmup_steps, num_steps)
        self.skipped = 0
        self.has_gradient = False
        self._losses_finite: Tensor | bool = True

    def _ready(self, parallel: ParallelConfig) -> nn.Module:
        replicated = self.accelerator.num_processes > 1 and parallel.strategy == "ddp"
        # Found before blocks are run twice: the trial pass takes gradients through a part of the network alone.
        unused = replicated and has_unused_weights(self.module)
        save_memory(self.module, parallel)
        if self.accelerator.num_processes == 1:
            return self.module
        if replicated:
            return replicate(self.module, self.accelerator.device, unused_weights=unused)
        if self.accelerator.is_main_process:
            self._template = copy.deepcopy(self.module).cpu()
        for network in (self.module, *([] if self.average is None else [self.average.module])):
            shard(network, self.accelerator.device, self.accelerator.mixed_precision)
        return self.module

    @property
    def averaged(self) -> nn.Module:
        """The network to sample from: the moving average where there is one, else the network itself."""
        return self.module if self.average is None else self.average.module

    def gather_averaged(self) -> nn.Module:
        """`averaged` with whole weights. Of a sharded network the first process returns a copy on the CPU, which it has
        room for from the start; the others return the sharded one. All processes must call it."""
        if not isinstance(self.averaged, FSDPModule):
            return self.averaged
        weights = gathered(self.averaged.state_dict(), keep=self.accelerator.is_main_process)
        if self._template is None:
            return self.averaged
        self._template.load_state_dict(weights)
        return self._template

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        """Inside, forward and `backward` of a micro-batch that is not the last of its update."""
        with without_sync(self.network):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a part of an update's loss."""
        self._losses_finite = self._losses_finite & torch.isfinite(loss.detach())
        self.has_gradient = True
        self.accelerator.backward(loss)

    def step(self, loss: Tensor) -> dict[str, float]:
        """Backward, clip, update, average. Returns the norm before clipping and the learning rate."""
        self.backward(loss)
        return self.update()

    def update(self) -> dict[str, float]:
        """Clip, update, average, with the gradients that `backward` has added up."""
        norm = self._clip()
        rate = self.scheduler.get_last_lr()[0]
        if norm == norm and norm != float("inf"):
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.module)
        else:
            self.skipped += 1
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.has_gradient = False
        return {"gradient_norm": norm, "learning_rate": rate, "skipped_updates": float(self.skipped)}

    def _clip(self) -> float:
        """Norm of the gradient over all processes; NaN if a loss of one of them was not finite."""
        total = nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip or float("inf"))
        norm = total.full_tensor() if isinstance(total, DTensor) else total
        finite = torch.as_tensor(self._losses_finite, device=norm.device)
        self._losses_finite = True
        return float(mean_over_processes(torch.where(finite, norm, torch.nan)))

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact continuation needs, on any number of processes; all of them must call it, and
        the first has it. Of a network with low-rank matrices the frozen base is left out, and named by its digest."""
        state = {
            "module": self._without_base(self.module.state_dict(), ""),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "average": None if self.average is None else self._without_base(self.average.state_dict(), "module."),
            "skipped": self.skipped,
            "config": flat_settings(self.config),
        }
        if self._base:
            state["base"] = self._base_digest
        return gathered(state, keep=self.accelerator.is_main_process)

    def _without_base(self, weights: dict[str, Any], prefix: str) -> dict[str, Any]:
        base = {prefix + name for name in self._base}
        return {name: value for name, value in weights.items() if name not in base}

    @cached_property
    def _base(self) -> dict[str, nn.Parameter]:
        """Frozen weights below low-rank matrices, which the caller has anyway."""
        named = self.module.named_parameters(remove_duplicate=False) if has_lora(self.module) else ()
        return {name: parameter for name, parameter in named if not parameter.requires_grad}

    @cached_property
    def _base_digest(self) -> str:
        return tensors_digest(self._base)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; strict.

        Raises:
            ValueError: if the state was made with another configuration, naming what differs, or of low-rank matrices
                on another base.
        """
        now = flat_settings(self.config)
        refuse_changes(state.get("config", now), now, where="the checkpoint")
        if state.get("base") != (self._base_digest if self._base else None):
            raise ValueError(
                "the checkpoint is of low-rank matrices on another base; load the model that it began with"
            )
        _load_weights(self.module, {**self._base, **state["module"]})
        self.optimizer.load_state_dict(self._placed(state["optimizer"]))
        self.scheduler.load_state_dict(state["scheduler"])
        if self.average is not None:
            base = {f"module.{name}": parameter for name, parameter in self._base.items()}
            _load_weights(self.average, {**base, **state["average"]})
        self.skipped = state["skipped"]

    def _placed(self, optimizer_state: dict[str, Any]) -> dict[str, Any]:
        """Moments cut up as their parameters are; the optimiser numbers parameters in order."""
        moments = {
            number: {name: sharded_like(value, self.parameters[number]) for name, value in entry.items()}
            for number, entry in optimizer_state["state"].items()
        }
        return {**optimizer_state, "state": moments}


def _check_finite(module: nn.Module) -> None:
    """Refuse parameters from which no update leads back to numbers."""
    bad = [name for name, parameter in module.named_parameters() if not bool(torch.isfinite(parameter).all())]
    if bad:
        raise ValueError(
            f"{len(bad)} parameters of {type(module).__name__} have NaN or infinite values, {bad[0]} first; start from "
            "other weights"
        )


def _load_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    own = module.state_dict()
    module.load_state_dict({name: sharded_like(value, own.get(name)) for name, value in weights.items()})
