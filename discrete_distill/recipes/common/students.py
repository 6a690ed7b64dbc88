"""Students as files: their weights, and the digest that names them."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Generator, nn

from ...digests import file_digest
from ...models import merge_lora
from ...models.lora import has_lora
from ...training import ModuleOptimizer
from .discriminator_files import save_discriminator
from .quiet import without_bars


class StudentTraining(Protocol):
    """Training of a student that the loop can run: what a checkpoint holds, and one training step."""

    student: ModuleOptimizer
    discriminator: ModuleOptimizer | None

    def saved(self) -> Mapping[str, Any]:
        """What a checkpoint holds."""
        ...

    def step(self, index: int, generator: Generator) -> dict[str, float]: ...

    def networks(self) -> list[nn.Module]:
        """All networks that a step calls."""
        ...


def save_student(training: StudentTraining, directory: Path) -> None:
    """``model.safetensors`` and, in ``discriminator/``, the discriminator; by the first process, while all of them
    hand over what is sharded."""
    student, discriminator = training.student, training.discriminator
    weights = directory / "model.safetensors"
    before = file_digest(weights) if weights.exists() else None
    save_denoiser(student, directory)
    if student.accelerator.is_main_process and before not in (None, file_digest(weights)):
        # A discriminator that was fitted to the student before this one knows nothing of it.
        shutil.rmtree(directory / "discriminator", ignore_errors=True)
    if discriminator is not None:
        save_discriminator(discriminator, directory / "discriminator")


def save_denoiser(student: ModuleOptimizer, directory: Path) -> None:
    """The averaged student: a `DiT`, or a plain model of the teacher's class; low-rank matrices are folded in."""
    whole: Any = student.gather_averaged()
    if student.accelerator.is_main_process:
        with without_bars():
            (merge_lora(copy.deepcopy(whole)) if has_lora(whole) else whole).save_pretrained(directory)
