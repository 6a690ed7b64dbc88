"""The distillation stage: any method in the library's loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn
from tqdm import tqdm

from ...digests import weights_digest
from ...distillation.methods import (
    BaseMethod,
    PathMethod,
)
from ...distillation.networks import Networks, SharedBase, make_networks
from ...distillation.rollout import DrawnBatch
from ...distributed.parallel import save_memory
from ...models import guide_by_prior, save_sampling
from ...process import MaskedDiffusion
from ...samplers import Sampler
from ...training import (
    BatchPart,
    DistillationStep,
    ModuleOptimizer,
    TrainingLoop,
    TrajectoryStore,
    flat_settings,
    fold_seed,
    shard,
)
from ...training.loop import Stateful
from ...training.metrics import on_the_host
from ...training.stored_settings import Setting
from .corpus import SequenceStream
from .distill_config import DistillConfig
from .plain_sampler import plain_sampler
from .results import write_results
from .students import save_student
from .teacher import load_network
from .teacher_check import check_teacher

SETTINGS_FILE = "settings.json"


class Distillation:
    """Networks, their optimisers and one training step."""

    def __init__(
        self,
        config: DistillConfig,
        teacher: Any,
        stream: SequenceStream,
        process: MaskedDiffusion,
        accelerator: Accelerator,
    ) -> None:
        check_teacher(config, teacher)
        self.config = config
        self.stream = stream
        self.process = process
        self.accelerator = accelerator
        if config.prior_guidance:
            teacher = guide_by_prior(teacher, config.prior_guidance, process.mask_token_id)
        self._teacher_id = weights_digest(teacher) if config.trajectories else ""
        method, parallel, updates = config.method, config.parallel, config.planned_updates()
        target = load_network(config.target, flag="--distill.target") if config.target else None
        made = make_networks(
            teacher,
            target=None if target is None else target.to(accelerator.device),
            log_ratio=[name for name in ("auxiliary", "discriminator") if name in updates],
            step_conditioning=method.step_conditioning,
            log_ratio_conditioning=method.auxiliary_step_conditioning,
            sharing=SharedBase(rank=config.rank) if config.sharing == "adapters" else "copies",
            trainable_blocks=config.discriminator_blocks,
        )
        if made.discriminator is not None:
            made.discriminator.train()  # Its spectral norms are estimated as it is trained.
        module_optimizers = {
            name: ModuleOptimizer(
                network, config.student if name == "student" else config.ratio, updates[name], accelerator, parallel
            )
            for name, network in made.trained().items()
        }
        self.student = module_optimizers["student"]
        self.auxiliary = module_optimizers.get("auxiliary")
        self.discriminator = module_optimizers.get("discriminator")
        networks = {name: module_optimizer.network for name, module_optimizer in self.parts().items()}
        kind: Any = method.method_class
        self.teacher = self._place(made.teacher)
        placed = None if made.target is None else self._place(made.target)
        self.method: BaseMethod[Any] = kind(Networks(teacher=self.teacher, target=placed, **networks), process, method)

    @cached_property
    def trajectories(self) -> TrajectoryStore:
        """Recorded samples of the teacher; drawn by the first process, at the first use, where they are missing."""
        with self.accelerator.main_process_first(), self.accelerator.autocast():
            return TrajectoryStore.record(
                self.config.trajectories,
                self._teacher_sampler(),
                self.teacher,
                (self.config.trajectory_rows, self.stream.shape),
                device=self.accelerator.device,
                seed=self.config.loop.seed,
                teacher_id=self._teacher_id,
            )

    def _teacher_sampler(self) -> Sampler:
        """In the teacher's own order, most certain tokens first, where the method learns it; in random order else."""
        return plain_sampler(
            self.process,
            self.teacher,
            self.stream.shape,
            num_steps=self.config.teacher_steps,
            by_confidence=self.config.follows_order,
        )

    def _place(self, network: Any) -> nn.Module:
        """A frozen copy, or the base that networks share; compiled and sharded as the student is."""
        parallel = self.config.parallel
        frozen = network if self.config.sharing == "adapters" else copy.deepcopy(network).requires_grad_(False).eval()
        save_memory(frozen, replace(parallel, activation_checkpointing=False))
        if self.accelerator.num_processes > 1 and parallel.strategy == "fsdp":
            shard(frozen, self.accelerator.device, self.accelerator.mixed_precision)
        return frozen

    def parts(self) -> dict[str, ModuleOptimizer]:
        """What is trained."""
        module_optimizers = {"student": self.student, "auxiliary": self.auxiliary, "discriminator": self.discriminator}
        return {
            name: module_optimizer
            for name, module_optimizer in module_optimizers.items()
            if module_optimizer is not None
        }

    def saved(self) -> dict[str, Stateful]:
        """What a checkpoint holds: the parts, and what the method remembers."""
        return {**self.parts(), "method": self.method}

    def networks(self) -> list[nn.Module]:
        """All networks that a step calls."""
        frozen = [each for each in (self.method.teacher, self.method.target) if each is not None]
        return [*frozen, *(module_optimizer.module for module_optimizer in self.parts().values())]

    def step(self, index: int, generator: Generator) -> dict[str, float]:
        """One step; see `DistillationStep`."""
        config = self.config
        size = config.batch_size // config.accumulate
        parts = [
            BatchPart(
                draw=partial(self._rollout, index, number),
                reference=partial(self.reference, size, generator),
                generator=generator,
            )
            for number in range(config.accumulate)
        ]
        skipped = ("discriminator",) if index % config.discriminator_every else ()
        step = DistillationStep(
            self.method,
            self.parts(),
            self.accelerator,
            parts,
            index,
            num_steps=config.loop.num_steps,
            skipped=skipped,
        )
        return on_the_host([step.run()])[0]

    def _rollout(self, index: int, part: int, generator: Generator, tokens: Tensor | None = None) -> DrawnBatch:
        config, size = self.config, self.config.batch_size // self.config.accumulate
        fixed: dict[str, int] = {}
        if isinstance(self.method, PathMethod) and self.accelerator.num_processes > 1:
            # All processes walk paths of one length: none waits for another, and sharded weights are gathered
            # equally often everywhere.
            choices = self.method.matcher.num_steps
            chosen = fold_seed("length of paths", config.loop.seed, index, part) % len(choices)
            fixed = {"num_steps": choices[chosen]}
        reads_reference = self.method.update_plan.rollout_reads_reference
        return self.method.rollout(
            size,
            self.stream.shape,
            reference=self.reference(size, generator) if reads_reference else None,
            generator=generator,
            device=self.accelerator.device,
            tokens=tokens,
            **fixed,
        )

    def reference(self, size: int, generator: Generator) -> Any:
        """What student and discriminator are held against: crops of the text, samples of the teacher, or `Trajectories`
        that were recorded."""
        if self.config.method.reference == "data":
            crops = self.stream.crops(size, generator=generator)
            return crops.to(self.accelerator.device)
        if self.config.trajectories:
            return self.trajectories.sample(size, generator=generator).to(self.accelerator.device)
        shape = (size, self.stream.shape)
        with self.accelerator.autocast():
            sampled = self._teacher_sampler()(self.teacher, shape, generator=generator, device=self.accelerator.device)
        return sampled.sequences


def distil(
    config: DistillConfig,
    teacher: Any,
    stream: SequenceStream,
    process: MaskedDiffusion,
    accelerator: Accelerator,
    directory: Path,
    *,
    make_bar: Callable[..., tqdm] = tqdm,
) -> list[dict[str, float]]:
    """Distil ``teacher``; student (its average) and discriminator are written to ``directory/student``.

    Returns:
        The logged metrics.
    """
    torch.manual_seed(config.loop.seed)
    distillation = Distillation(config, teacher, stream, process, accelerator)
    made_with = {**distill_settings(config, teacher), **stream.settings()}
    history = TrainingLoop(
        config.loop,
        directory,
        distillation.saved(),
        distillation.step,
        label="distil",
        shown=("log_ratio", "entropy"),
        make_bar=make_bar,
        rank=accelerator.process_index,
        device=accelerator.device,
        settings=made_with,
    ).run()
    save_student(distillation, directory / "student")
    if accelerator.is_main_process:
        write_results(directory / "student" / SETTINGS_FILE, made_with)
        paths = getattr(config.method, "paths", None)
        save_sampling(directory / "student", process, () if paths is None else paths.num_steps, config.order)
    accelerator.wait_for_everyone()
    return history


def distill_settings(config: DistillConfig, teacher: nn.Module) -> dict[str, Setting]:
    """What a student depends on: the configuration, and the weights of its teacher. How long it is trained may change,
    and how networks lie on processes."""
    settings = flat_settings(config, "distill", leave_out=("distill.loop", "distill.parallel", "distill.target"))
    target = {"target": weights_digest(load_network(config.target))} if config.target else {}
    return {**settings, "teacher": weights_digest(teacher), **target}
