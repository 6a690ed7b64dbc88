"""Solved examples of a task in the place of a corpus."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ...samplers import Frame
from ...training import fold_seed
from ...training.stored_settings import Setting
from .named_tasks import NamedTask


@dataclass(frozen=True)
class TaskStream:
    """Whole solved sequences, prompt and answer, drawn anew for each batch; see `SequenceStream`.

    The network learns all tokens of a sequence given any others, so that one network is sampled with any prompt.

    Args:
        named: the task.
    """

    named: NamedTask

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.named.length

    @property
    def shape(self) -> int | Frame:
        """What a sampler draws without a prompt."""
        prefix = self.named.prefix
        return Frame(self.named.symbols_task.length, prefix=prefix) if prefix else self.length

    def text_mask(self) -> Tensor:
        """False at the start token; bool ``[L]``."""
        mask = torch.ones(self.length, dtype=torch.bool)
        mask[: len(self.named.prefix)] = False
        return mask

    def settings(self) -> dict[str, Setting]:
        """The stream as settings of a run."""
        return {"task": self.named.name, "task.size": self.named.size}

    def crops(self, batch_size: int, *, generator: Generator | None = None) -> Tensor:
        """Solved sequences, int64 ``[B, L]``."""
        if generator is not None and generator.device.type != "cpu":  # Tasks draw on the CPU.
            seed = torch.randint(2**62, (), generator=generator, device=generator.device)
            generator = Generator().manual_seed(int(seed))
        return self.named.task.sample_solutions(batch_size, generator).sequences

    def packed(self, limit: int = 512) -> Tensor:
        """The same ``limit`` solved sequences at every call, int64 ``[N, L]``."""
        return self.crops(limit, generator=Generator().manual_seed(fold_seed("held-out solutions")))
