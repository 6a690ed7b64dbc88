"""Training of a student for as many steps as a budget pays for, so that methods are compared at equal cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from ...training import LoopConfig, TrainingLoop
from ...training.stored_settings import Setting
from .budget import BudgetKind, EvaluationCounter, counted_step, plan_steps, total_evaluations
from .run import Run
from .students import StudentTraining

Training = TypeVar("Training", bound=StudentTraining)


@dataclass(kw_only=True)
class Cost:
    """What training one student took.

    Attributes:
        steps: training steps.
        seconds: of the loop.
        network_evaluations: passes of one sequence through one network; a backward pass counts as two, see
            `EvaluationCounter`.
        discriminator_seconds: what fitting a discriminator to the finished student took on top; 0 without one.
    """

    steps: int
    seconds: float
    network_evaluations: float
    discriminator_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Trained(Generic[Training]):
    """A finished training and its cost."""

    training: Training
    cost: Cost


def train_within_budget(
    run: Run,
    make: Callable[[int], Training],
    kind: BudgetKind,
    amount: float,
    *,
    name: str,
    loop: LoopConfig,
    seed: int,
    folder: Path,
    plan_file: Path,
    settings: Mapping[str, Setting],
) -> Trained[Training]:
    """Plan the number of steps, and train; a run that was interrupted goes on, and what is finished is not done again.

    Args:
        run: device and processes.
        make: makes the training, of a number of steps.
        kind: of the budget.
        amount: of the budget.
        name: of the method, on the progress bar.
        loop: checkpoints and logs.
        seed: of the training.
        folder: of metrics and checkpoints.
        plan_file: where the number of steps is kept.
        settings: what the student depends on; a run that goes on with others is refused.
    """
    length = run.config.data.length
    plan = plan_steps(make, kind, amount, plan_file, length=length, seed=seed)
    training, counter = make(plan.num_steps), EvaluationCounter(length)
    history = TrainingLoop(
        # A method that collapses is measured like the others, and its figures say so.
        replace(loop, num_steps=plan.num_steps, seed=seed, stop_on_collapse=0),
        folder,
        training.saved(),
        counted_step(training, counter),
        label=name,
        shown=("log_ratio", "divergence", "loss", "entropy"),
        rank=run.accelerator.process_index,
        device=run.accelerator.device,
        settings=settings,
    ).run()
    cost = Cost(steps=plan.num_steps, seconds=history[-1]["seconds"], network_evaluations=total_evaluations(history))
    return Trained(training=training, cost=cost)
