"""What a task with a verifier is."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from ...checks import check_count, check_mask
from ..checks import check_token_ids


class Prompts(NamedTuple):
    """What a sampler is given: ``sampler(denoiser, x_init=..., generation_mask=...)``.

    Attributes:
        x_init: given tokens, and masks where tokens are wanted; int64 ``[B, L]``.
        generation_mask: bool ``[B, L]``, true at positions to be generated.

    Examples:
        >>> task = Permutations(3, mask_token_id=8)
        >>> prompts = task.sample_prompts(2, generator)
        >>> out = FirstHittingSampler(process)(teacher, x_init=prompts.x_init, generator=generator)
        >>> task.render(prompts.x_init[0]), task.verify(out.sequences, prompts).shape
        ('___', torch.Size([2]))
    """

    x_init: Tensor
    generation_mask: Tensor


class Examples(NamedTuple):
    """Solved prompts, to train a network on.

    Attributes:
        sequences: prompt and answer, int64 ``[B, L]``.
        generation_mask: bool ``[B, L]``, true at the answer.

    Examples:
        >>> sequences = torch.tensor([[1, 2, 3]])
        >>> examples = Examples(sequences, generation_mask=torch.tensor([[False, True, True]]))
        >>> examples.prompts(mask_token_id=8).x_init
        tensor([[1, 8, 8]])
        >>> loss = process.nelbo(teacher, sequences, generation_mask=examples.generation_mask, generator=generator).loss
    """

    sequences: Tensor
    generation_mask: Tensor

    def prompts(self, mask_token_id: int) -> Prompts:
        """The same prompts without their answers."""
        return Prompts(self.sequences.masked_fill(self.generation_mask, mask_token_id), self.generation_mask)


@runtime_checkable
class Task(Protocol):
    """Prompts, solved examples and a verifier, over sequences of one length.

    Examples:
        >>> task = Permutations(3, mask_token_id=3)
        >>> isinstance(task, Task)
        True
        >>> task.verify(task.parse(["cab", "caa"]), task.sample_prompts(2))
        tensor([ True, False])
    """

    @property
    def length(self) -> int:
        """Tokens of a sequence, prompt included."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids, mask included."""

    @property
    def mask_token_id(self) -> int:
        """Id of the mask."""

    @property
    def num_solutions(self) -> int | None:
        """Number of right answers where all prompts are alike and the examples are uniform over right answers, or
        None."""

    def sample_solutions(self, n: int, generator: Generator | None = None) -> Examples:
        """Draw ``n`` solved examples."""

    def sample_prompts(self, n: int, generator: Generator | None = None) -> Prompts:
        """Draw ``n`` prompts from the distribution of the examples'."""

    def verify(self, sequences: Tensor, prompts: Prompts) -> Tensor:
        """Whether each sequence keeps its prompt and answers it; bool ``[B]``."""

    def render(self, sequence: Tensor) -> str:
        """Write a sequence ``[L]`` for people."""


def check_task(task: Task, generator: Generator | None = None, *, n: int = 8) -> None:
    """Refuse a task whose verifier rejects the task's own solutions.

    Args:
        task: any task.
        generator: source of randomness, on the CPU.
        n: number of examples to look at.

    Raises:
        ValueError: if an example is rejected, or an example with its answer masked is accepted; the example is shown.

    Examples:
        >>> check_task(Sudoku(4, mask_token_id=4))  # Nothing is raised: its verifier accepts its own solutions.
    """
    check_count("n", n)
    examples = task.sample_solutions(n, generator)
    prompts = examples.prompts(task.mask_token_id)
    check_answers(examples.sequences, prompts)
    rejected_B = ~task.verify(examples.sequences, prompts)
    if bool(rejected_B.any()):
        sequence = examples.sequences[int(rejected_B.nonzero()[0])]
        raise ValueError(
            f"the verifier of {task!r} rejects a solution of its own:\n{task.render(sequence)}\n"
            "make sample_solutions and verify agree"
        )
    accepted_B = task.verify(prompts.x_init, prompts) & examples.generation_mask.any(1)
    if bool(accepted_B.any()):
        sequence = prompts.x_init[int(accepted_B.nonzero()[0])]
        raise ValueError(
            f"the verifier of {task!r} accepts a prompt without an answer:\n{task.render(sequence)}\n"
            "make it reject masks"
        )


def check_answers(sequences: Tensor, prompts: Prompts) -> None:
    """Refuse sequences that do not belong to the prompts, by type and shape."""
    check_token_ids(sequences, "sequences")
    check_token_ids(prompts.x_init, "prompts")
    if sequences.shape != prompts.x_init.shape:
        raise ValueError(
            f"sequences have shape {list(sequences.shape)}, the prompts {list(prompts.x_init.shape)}; give each "
            "sequence its prompt"
        )
    check_mask("generation_mask", prompts.generation_mask, prompts.x_init.shape, of="prompts")


def prompt_kept(sequences: Tensor, prompts: Prompts) -> Tensor:
    """Whether each sequence has its prompt's tokens wherever nothing is generated; bool ``[B]``."""
    return ((sequences == prompts.x_init) | prompts.generation_mask).all(1)


def all_generated(sequences: Tensor) -> Tensor:
    """A generation mask that is true everywhere, bool ``[B, L]``."""
    return torch.ones_like(sequences, dtype=torch.bool)
