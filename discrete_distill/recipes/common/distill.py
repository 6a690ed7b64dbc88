"""The distillation stage: any method in the library's loop."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn
from tqdm import tqdm

from ...checks import check_all_counts, check_count, check_number
from ...digests import weights_digest
from ...distillation.methods import (
    BaseMethod,
    DiDiInstructConfig,
    MethodConfig,
    OnPolicyConfig,
    PathMethod,
    TrajectoryStates,
)
from ...distillation.networks import Networks, SharedBase, make_networks
from ...distillation.rollout import DrawnBatch
from ...distributed.parallel import save_memory
from ...models import DiT, EmbeddingDenoiser, HiddenStatesDenoiser, guide_by_prior, save_sampling
from ...process import MaskedDiffusion
from ...samplers import AncestralSampler, ConfidenceSampler, Sampler
from ...training import (
    BatchPart,
    DistillationStep,
    LoopConfig,
    ModuleOptimizer,
    OptimizerConfig,
    ParallelConfig,
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
from .results import write_results
from .students import save_student

SETTINGS_FILE = "settings.json"

Sharing = Literal["copies", "adapters"]


@dataclass(kw_only=True)
class DistillConfig:
    """How the student is made.

    Args:
        method: the method's own choices; ``--distill.method.*``.
        loop: how long (paper: 10 000 steps).
        batch_size: sequences per step, on each process.
        accumulate: parts that a batch is worked off in, one after another, for less memory. The gradient is that of the
            whole batch (the MMD compares samples within a part); rollouts are drawn twice.
        student: its optimiser (paper: rate 1e-6, EMA 0.999).
        ratio: optimiser of discriminator and auxiliary denoiser (paper: rate 1e-5); each schedule is spread over the
            updates that its network makes, see `planned_updates`.
        discriminator: train one, for the log-ratio or for guided sampling.
        discriminator_blocks: its trainable blocks (paper: 4).
        discriminator_every: student steps between its updates.
        teacher_steps: steps of the teacher where its samples are the reference.
        trajectories: folder where so many samples of the teacher, with their order, are recorded once and read by later
            runs; if empty, new samples are drawn in every step.
        trajectory_rows: how many.
        prior_guidance: weight of `guide_by_prior` for the teacher, from which the student starts (paper: 0).
        parallel: many processes, and what saves memory; ``--distill.parallel.*``.
        sharing: "copies", each network with weights of its own; or "adapters", low-rank matrices on one set of frozen
            weights (needs peft).
        rank: of these matrices.
    """

    method: MethodConfig = field(default_factory=DiDiInstructConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(num_steps=10_000))
    batch_size: int = 32
    accumulate: int = 1
    student: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-6, ema_decay=0.999))
    ratio: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-5))
    discriminator: bool = True
    discriminator_blocks: int = 4
    discriminator_every: int = 1
    teacher_steps: int = 64
    trajectories: str = ""
    trajectory_rows: int = 1024
    prior_guidance: float = 0.0
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    sharing: Sharing = "copies"
    rank: int = 16

    def __post_init__(self) -> None:
        counts = ("batch_size", "accumulate", "discriminator_every", "teacher_steps", "trajectory_rows")
        check_all_counts(self, *counts, flag="--distill")
        check_count("--distill.discriminator-blocks", self.discriminator_blocks, minimum=0)
        check_number("--distill.prior-guidance", self.prior_guidance, minimum=0.0)
        check_count("--distill.rank", self.rank)
        if self.sharing not in get_args(Sharing):
            raise ValueError(f"--distill.sharing is one of {get_args(Sharing)}, got {self.sharing!r}")
        if self.sharing == "adapters" and self.parallel.strategy == "fsdp":
            raise ValueError("fsdp would take apart the weights that adapters share: take --distill.sharing copies")
        group_size = self.method.group_size
        if self.batch_size % group_size:
            raise ValueError(
                f"group_size {group_size} does not divide batch_size {self.batch_size}; "
                "change --distill.batch-size or --distill.method.advantages.group-size"
            )
        if self.batch_size % (self.accumulate * group_size):
            raise ValueError(
                f"batch_size {self.batch_size} cannot be worked off in {self.accumulate} parts of whole groups of "
                f"{group_size}; change --distill.accumulate"
            )
        decodes = self.method.reference == "teacher" or isinstance(self.method, OnPolicyConfig)
        if self.parallel.strategy == "fsdp" and decodes:
            raise ValueError(
                "a sharded teacher cannot be sampled from: a sampler calls it as often as its own draws need, and "
                'all processes must call equally often; take reference="data", or --distill.parallel.strategy ddp'
            )
        plan = self.method.update_plan(discriminator=self.discriminator)
        if self.trajectories and not (plan.rollout_reads_reference and self.method.reference == "teacher"):
            raise ValueError(
                f"{self.method.method_class.__name__} does not learn from samples of its teacher: leave out "
                f"--distill.trajectories {self.trajectories}"
            )
        if self.follows_order and not self.trajectories:
            raise ValueError("TrajectoryStates needs recorded trajectories: give --distill.trajectories a folder")
        if self.parallel.strategy == "fsdp" and plan.rounds > 1:
            raise ValueError(
                f"a sharded student cannot become the teacher of the next of {plan.rounds} rounds; take "
                "--distill.parallel.strategy ddp"
            )
        trained = "discriminator" in plan.order
        if trained and not self.discriminator:
            raise ValueError("a DiscriminatorRatio needs --distill.discriminator")
        if self.discriminator and not trained:
            raise ValueError(
                f"{self.method.method_class.__name__} trains no discriminator; set --distill.no-discriminator. The "
                "stage discriminator fits one to the finished student"
            )
        self.planned_updates()

    @property
    def follows_order(self) -> bool:
        """Whether the method learns the order in which its teacher reveals tokens."""
        return isinstance(getattr(self.method, "corruption", None), TrajectoryStates)

    def planned_updates(self) -> dict[str, int]:
        """Updates of each network in the whole run, over which its learning-rate schedule is spread."""
        steps, plan = self.loop.num_steps, self.method.update_plan(discriminator=self.discriminator)
        if not plan.updates_student(steps - 1):
            raise ValueError(
                f"a warm-up of {plan.warmup} steps leaves the student no update in {steps} steps; lower "
                "--distill.method.log-ratio.warmup, or raise --distill.loop.num-steps"
            )
        return plan.planned_updates(steps, every={"discriminator": self.discriminator_every})


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
        made = make_networks(
            teacher,
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
        placed = Networks(teacher=self._place_teacher(made.teacher), **networks)
        self.method: BaseMethod[Any] = kind(placed, process, method)

    @cached_property
    def trajectories(self) -> TrajectoryStore:
        """Recorded samples of the teacher; drawn by the first process, at the first use, where they are missing."""
        with self.accelerator.main_process_first(), self.accelerator.autocast():
            return TrajectoryStore.record(
                self.config.trajectories,
                self._teacher_sampler(),
                self.method.teacher,
                (self.config.trajectory_rows, self.stream.shape),
                device=self.accelerator.device,
                seed=self.config.loop.seed,
                teacher_id=self._teacher_id,
            )

    def _teacher_sampler(self) -> Sampler:
        """In the teacher's own order, most certain tokens first, where the method learns it; in random order else."""
        kind = ConfidenceSampler if self.config.follows_order else AncestralSampler
        return kind(self.process, num_steps=self.config.teacher_steps)

    def _place_teacher(self, teacher: Any) -> nn.Module:
        """A frozen copy, or the base that all networks share; compiled and sharded as the student is."""
        parallel = self.config.parallel
        frozen = teacher if self.config.sharing == "adapters" else copy.deepcopy(teacher).requires_grad_(False).eval()
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
        return [self.method.teacher, *(module_optimizer.module for module_optimizer in self.parts().values())]

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
            sampled = self._teacher_sampler()(
                self.method.teacher, shape, generator=generator, device=self.accelerator.device
            )
        return sampled.sequences


def check_teacher(config: DistillConfig, teacher: Any) -> None:
    """Refuse a teacher of which the configured networks cannot be made, before any is."""
    if config.sharing == "adapters" and importlib.util.find_spec("peft") is None:
        raise ValueError("--distill.sharing adapters needs peft: pip install 'discrete_distill[lora]'")
    if isinstance(teacher, DiT):
        return
    name = type(getattr(teacher, "model", teacher)).__name__
    problems = []
    conditioned = config.method.step_conditioning or config.method.auxiliary_step_conditioning
    if conditioned and not isinstance(teacher, EmbeddingDenoiser):
        problems.append("its input embeddings cannot be replaced, and a network is to be passed its step")
    if config.discriminator and not isinstance(teacher, HiddenStatesDenoiser):
        problems.append("its blocks are not known: set --distill.no-discriminator")
    if config.prior_guidance:
        problems.append("guidance by the prior is not merged into its head: set --distill.prior-guidance 0")
    if problems:
        raise ValueError(f"a {name} cannot be distilled like this: {'; '.join(problems)}")


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
        save_sampling(directory / "student", process, getattr(getattr(config.method, "paths", None), "num_steps", ()))
    accelerator.wait_for_everyone()
    return history


def distill_settings(config: DistillConfig, teacher: nn.Module) -> dict[str, Setting]:
    """What a student depends on: the configuration, and the weights of its teacher. How long it is trained may change,
    and how networks lie on processes."""
    settings = flat_settings(config, "distill", leave_out=("distill.loop", "distill.parallel"))
    return {**settings, "teacher": weights_digest(teacher)}
