"""Run a sampler on a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from ...checks import check_count
from .accuracy import Accuracy, accuracy
from .coverage import Coverage, measure_coverage
from .task import Prompts, Task, check_answers, check_task


class Answers(Protocol):
    """What a sampler returns; `SamplerOutput` is one."""

    @property
    def sequences(self) -> Tensor:
        """int64 ``[B, L]``."""

    @property
    def nfe(self) -> int:
        """Evaluations of the denoiser."""

    @property
    def commits(self) -> int:
        """Passes that kept the keys and values of a finished block."""


@dataclass(frozen=True, kw_only=True)
class TaskFigures:
    """Of one sampler on one task.

    Attributes:
        accuracy: fraction of right answers.
        tokens_per_forward: generated tokens of a sequence over evaluations of the denoiser and commits, averaged over
            sequences.
        coverage: of the right answers; None where their distribution is not known, or none is right.
    """

    accuracy: Accuracy
    tokens_per_forward: float
    coverage: Coverage | None


def measure_task(
    task: Task,
    sample: Callable[[Prompts, Generator | None], Answers],
    *,
    num_prompts: int,
    batch_size: int = 256,
    generator: Generator | None = None,
) -> TaskFigures:
    """Sample answers to prompts of a task, and verify them.

    Args:
        task: any task. It is refused if its verifier rejects its own solutions.
        sample: draws answers to prompts; calls any sampler with any denoiser.
        num_prompts: number of prompts, one answer each.
        batch_size: prompts of a call.
        generator: source of the prompts, and passed to ``sample``; on the CPU.

    Raises:
        TypeError: if answers are no token ids.
        ValueError: if a number is below 1, the task contradicts itself, or answers have another shape than prompts.

    Example:
        >>> def sample(prompts, generator):
        ...     x_init, generation_mask = prompts
        ...     return sampler(denoiser, x_init=x_init, generation_mask=generation_mask, generator=generator)
        >>> figures = measure_task(Sudoku(6, mask_token_id=6), sample, num_prompts=1024)
        >>> figures.accuracy.value, figures.tokens_per_forward, figures.coverage
    """
    check_count("num_prompts", num_prompts)
    check_count("batch_size", batch_size)
    check_task(task, Generator().manual_seed(0))
    correct, right, tokens_per_forward = [], [], 0.0
    for start in range(0, num_prompts, batch_size):
        prompts = task.sample_prompts(min(batch_size, num_prompts - start), generator)
        answers = sample(prompts, generator)
        sequences = answers.sequences.cpu()
        check_answers(sequences, prompts)
        correct.append(task.verify(sequences, prompts))
        right.append(sequences[correct[-1]])
        tokens_per_forward += float(prompts.generation_mask.sum()) / max(answers.nfe + answers.commits, 1)
    right_samples = torch.cat(right)
    known = task.num_solutions is not None and len(right_samples) > 0
    return TaskFigures(
        accuracy=accuracy(torch.cat(correct)),
        tokens_per_forward=tokens_per_forward / num_prompts,
        coverage=measure_coverage(right_samples, task.num_solutions) if known and task.num_solutions else None,
    )
