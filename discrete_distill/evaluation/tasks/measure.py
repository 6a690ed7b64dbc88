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
    def nfe(self) -> float:
        """Evaluations of the denoiser for a sequence; of a batch, or the mean over its sequences."""

    @property
    def commits(self) -> int:
        """Passes that kept the keys and values of a finished block."""


@dataclass(frozen=True, kw_only=True)
class TaskFigures:
    """Figures of one sampler on one task.

    Attributes:
        accuracy: fraction of right answers.
        tokens_per_forward: generated tokens of a sequence over evaluations of the denoiser and commits, averaged over
            sequences.
        coverage: of the right answers; None where their distribution is not known, or none is right.

    Examples:
        >>> def sample(prompts, generator):
        ...     sampler = AncestralSampler(process, num_steps=2, forbidden_token_ids=(2, 3, 4, 5, 6, 7))
        ...     return sampler(teacher, x_init=prompts.x_init, generator=generator)
        >>> figures = measure_task(Permutations(2, mask_token_id=8), sample, num_prompts=64, generator=generator)
        >>> figures.tokens_per_forward, figures.coverage.num_solutions
        (1.0, 2)
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

    Examples:
        >>> def sample(prompts, generator):
        ...     x_init, generation_mask = prompts
        ...     sampler = AncestralSampler(process, num_steps=4)
        ...     return sampler(teacher, x_init=x_init, generation_mask=generation_mask, generator=generator)
        >>> figures = measure_task(Sudoku(4, mask_token_id=8), sample, num_prompts=8, generator=generator)
        >>> figures.accuracy.value, figures.tokens_per_forward  # The network is untrained; 16 cells in four steps.
        (0.0, 4.0)
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
        tokens_per_forward += float(prompts.generation_mask.sum()) / max(answers.nfe + answers.commits, 1.0)
    right_samples = torch.cat(right)
    known = task.num_solutions is not None and len(right_samples) > 0
    return TaskFigures(
        accuracy=accuracy(torch.cat(correct)),
        tokens_per_forward=tokens_per_forward / num_prompts,
        coverage=measure_coverage(right_samples, task.num_solutions) if known and task.num_solutions else None,
    )
