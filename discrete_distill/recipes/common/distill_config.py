"""Settings of a distillation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from ...checks import check_all_counts, check_count, check_number
from ...distillation.methods import (
    AutoregressiveRatio,
    DiDiInstructConfig,
    MethodConfig,
    OnPolicyConfig,
    TrajectoryStates,
)
from ...process import UnmaskingOrder
from ...training import LoopConfig, OptimizerConfig, ParallelConfig

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
        target: folder of an autoregressive network of the same tokens, whose distribution the student is to have, for
            `AutoregressiveRatio` alone (preset demo-target); empty for the one that the stage teacher of the run made.
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
    target: str = ""
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
        if self.target and not self.learns_target:
            raise ValueError(
                f"{self.method.method_class.__name__} as configured has no AutoregressiveRatio, and reads no target: "
                f"leave out --distill.target {self.target}, or take --preset demo-target"
            )
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

    @property
    def order(self) -> UnmaskingOrder:
        """In which the student's paths reveal their masks, and in which it is sampled."""
        paths = getattr(self.method, "paths", None)
        return "random" if paths is None else paths.order

    @property
    def learns_target(self) -> bool:
        """Whether the student is to have the distribution of ``target``."""
        return isinstance(getattr(self.method, "log_ratio", None), AutoregressiveRatio)

    def planned_updates(self) -> dict[str, int]:
        """Updates of each network in the whole run, over which its learning-rate schedule is spread."""
        steps, plan = self.loop.num_steps, self.method.update_plan(discriminator=self.discriminator)
        if not plan.updates_student(steps - 1):
            raise ValueError(
                f"a warm-up of {plan.warmup} steps leaves the student no update in {steps} steps; lower "
                "--distill.method.log-ratio.warmup, or raise --distill.loop.num-steps"
            )
        return plan.planned_updates(steps, every={"discriminator": self.discriminator_every})
