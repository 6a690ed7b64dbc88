"""What methods that learn from corrupted data, without student paths, share: their rollout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Generator, Tensor

from ...process.denoiser import LogitsOfPart, logits_in_parts
from ...samplers import Frame
from ..trajectories import Trajectories
from .base import BaseMethod
from .corrupted_data import MaskedBatch, clean_sequences, corrupt_data, refuse_masks
from .method_config import MethodConfig
from .protocol import UpdatePlan

ConfigT = TypeVar("ConfigT", bound=MethodConfig)


class DataMethodConfig(MethodConfig):
    """Configuration of a `DataMethod` of one round that reads the student alone."""

    def update_plan(self, *, discriminator: bool = False) -> UpdatePlan:
        """The student alone, on reference sequences; a discriminator is not trained."""
        return UpdatePlan(order=("student",), reads_reference=("rollout",))

    def loss_evaluations(self, batch: int, *, time_conditioning: bool = True) -> tuple[float, float]:
        """None but the student's own."""
        return 0.0, 0.0


class DataMethod(BaseMethod[ConfigT], Generic[ConfigT]):
    """A method whose rollout is made of corrupted data, and which trains the student alone.

    Attributes:
        minimum_masks: positions of each sequence that are masked at least.
    """

    minimum_masks: ClassVar[int] = 1

    def student_logits(self, rollout: MaskedBatch) -> LogitsOfPart:
        """Call the student once; its logits at the positions of the loss are computed when a part is read."""
        return logits_in_parts(
            self.student, rollout.x_t, rollout.t, rollout.positions, model_kwargs=rollout.denoiser_kwargs()
        )

    def rollout(
        self,
        batch_size: int | None = None,
        length: int | Frame | None = None,
        *,
        x_init: Tensor | None = None,
        attention_mask: Tensor | None = None,
        reference: Tensor | Trajectories | None = None,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        tokens: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Corrupt reference sequences; see `corrupt`.

        Args:
            batch_size: number of sequences of ``reference``, which sets it.
            length: their tokens, or a `Frame`, whose prefix and suffix are given and never masked.
            x_init: int64 ``[B, L]``; where it has no mask, its token is given and never masked. Every position of
                ``reference`` may be masked by default.
            attention_mask: bool ``[B, L]``, true at real tokens; the others are never masked.
            reference: clean tokens, int64 ``[B, L]``, or `Trajectories`, which say what was given and what is padding.
            generator: source of randomness.
            device: not read; the device is that of ``reference``.
            tokens: not read; the same state of ``generator`` draws the same batch.
            model_kwargs: passed to the networks by keyword.

        Raises:
            TypeError: if the reference is not int64, or the attention mask holds neither booleans nor integers.
            ValueError: if there is no reference, it is empty, of another shape than the other arguments, or holds masks
                at positions that may be masked (looked at on a CPU alone).
        """
        recorded: dict[str, Tensor] = {}
        generated = None
        if isinstance(reference, Trajectories):
            recorded, generated = {"reveal_step": reference.reveal_step}, reference.generation_mask
            attention_mask = reference.attention_mask if attention_mask is None else attention_mask
            reference = reference.x_0
        x_0, generation_mask = clean_sequences(self.process, reference, (batch_size, length), x_init, attention_mask)
        if generated is not None:
            generation_mask = generated if generation_mask is None else generated & generation_mask
        refuse_masks(self.process, x_0, generation_mask)
        if self.block_length:
            model_kwargs = {**(model_kwargs or {}), "clean": x_0}
        return self.corrupt(
            x_0,
            generation_mask=generation_mask,
            attention_mask=attention_mask,
            generator=generator,
            model_kwargs=model_kwargs,
            **recorded,
        )

    def corrupt(
        self,
        x_0: Tensor,
        *,
        generation_mask: Tensor | None,
        attention_mask: Tensor | None,
        generator: Generator | None,
        model_kwargs: Mapping[str, Any] | None,
        reveal_step: Tensor | None = None,
    ) -> MaskedBatch:
        """States of clean sequences, with ``minimum_masks`` or more masks; see `corrupt_data`. The order in which
        tokens were revealed, int64 ``[B, L]`` of `Trajectories`, is read by methods that mask along it.

        For a student that reads by blocks, each block has so many masks of its own.
        """
        return corrupt_data(
            self.process,
            x_0,
            block_length=self.block_length,
            generation_mask=generation_mask,
            attention_mask=attention_mask,
            minimum_masks=self.minimum_masks,
            generator=generator,
            model_kwargs=model_kwargs,
        )
