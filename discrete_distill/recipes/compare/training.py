"""Training of every method that is compared, under the budget."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...digests import weights_digest
from ...training import flat_settings
from ..common.budgeted_training import Cost, train_within_budget
from ..common.distill import Distillation
from ..common.distill_config import DistillConfig
from ..common.network_shape import network_shape
from ..common.quiet import without_bars
from ..common.run import Run
from ..common.student_stages import fit_discriminator
from ..common.students import StudentTraining, save_student
from .autoregressive import AutoregressiveConfig, AutoregressiveTraining
from .settings import ComparisonConfig

MethodConfig = DistillConfig | AutoregressiveConfig


def training_folder(run: Run, name: str, seed: int) -> Path:
    """Folder of one training of a method: ``<run>/<method>/seed-<n>``."""
    return run.directory / name / f"seed-{seed}"


def train_method(run: Run, config: ComparisonConfig, name: str, method: MethodConfig, teacher: Any, seed: int) -> Cost:
    """Train one method with one seed, as long as the budget pays for; what is finished is not done again."""
    folder = training_folder(run, name, seed)
    make = _maker(run, method, teacher, seed)
    plan_file = training_folder(run, name, config.train_seeds[0]) / "plan.json"
    shares = config.autoregressive_share if isinstance(method, AutoregressiveConfig) else 1.0
    trained = train_within_budget(
        run,
        make,
        config.budget,
        shares * config.amount,
        name=name,
        loop=method.loop,
        seed=seed,
        folder=folder,
        plan_file=plan_file,
        settings={
            **flat_settings(method, name, leave_out=(f"{name}.loop", f"{name}.parallel")),
            "teacher": weights_digest(teacher),
            **run.streams["train"].settings(),
        },
    )
    if run.accelerator.is_main_process:
        _save(trained.training, folder / "student")
    run.write_fingerprint(folder / "student")
    # For the library's own method alone, whose loss trains no discriminator.
    fitted = method is config.distill and config.discriminator.updates
    if not fitted:
        return trained.cost
    return replace(trained.cost, discriminator_seconds=fit_discriminator(run, folder, seed)[-1]["seconds"])


def _maker(run: Run, method: MethodConfig, teacher: Any, seed: int) -> Callable[[int], StudentTraining]:
    stream, process, accelerator = run.streams["train"], run.process, run.accelerator

    def make(num_steps: int) -> StudentTraining:
        torch.manual_seed(seed)
        config: Any = replace(method, loop=replace(method.loop, num_steps=num_steps, seed=seed))
        if isinstance(config, AutoregressiveConfig):
            eos = run.tokenizer.eos_token_id
            return AutoregressiveTraining(config, network_shape(teacher), stream, process, eos, accelerator)
        return Distillation(config, teacher, stream, process, accelerator)

    return make


def _save(training: StudentTraining, folder: Path) -> None:
    if isinstance(training, AutoregressiveTraining):
        network: Any = copy.deepcopy(training.student.averaged)
        with without_bars():
            network.save_pretrained(folder)
    else:
        save_student(training, folder)
