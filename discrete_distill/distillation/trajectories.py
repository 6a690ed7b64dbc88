"""Samples of a teacher with the order in which their tokens were revealed.

Shape suffixes: B batch, L length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ..checks import check_mask
from ..process import Denoiser, evaluation_mode
from ..samplers import Frame, Sampler

GIVEN, PADDING = -1, -2


@dataclass(frozen=True)
class Trajectories:
    """Sequences, and the step of a sampler in which each of their tokens was revealed.

    The state of a trajectory before step ``k`` has masks where ``reveal_step >= k``. Tokens of data with the order of a
    teacher are a pseudo-trajectory (d3LLM, arXiv 2601.07568): ``replace(trajectories, x_0=data)``.

    Args:
        x_0: tokens at the end, int64 ``[B, L]``.
        reveal_step: int64 ``[B, L]``, from 0; `GIVEN` (-1) where a token was given, `PADDING` (-2) at padding.

    Raises:
        TypeError: if either holds no int64 numbers.
        ValueError: if their shapes differ.

    Examples:
        >>> trajectories = Trajectories(torch.tensor([[5, 3, 1]]), reveal_step=torch.tensor([[-1, 1, 0]]))
        >>> trajectories.generation_mask  # The first token was given.
        tensor([[False,  True,  True]])
        >>> trajectories.x_0.masked_fill(trajectories.reveal_step >= 1, 8)  # The state before step 1.
        tensor([[5, 8, 1]])
    """

    x_0: Tensor
    reveal_step: Tensor

    def __post_init__(self) -> None:
        for name in ("x_0", "reveal_step"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) or value.dtype != torch.long:
                raise TypeError(f"{name} must be int64 [B, L], got {getattr(value, 'dtype', type(value).__name__)}")
        if self.x_0.shape != self.reveal_step.shape or self.x_0.dim() != 2:
            raise ValueError(
                f"x_0 is {list(self.x_0.shape)} and reveal_step {list(self.reveal_step.shape)}; give [B, L]"
            )

    @property
    def generation_mask(self) -> Tensor:
        """Bool ``[B, L]``, true at tokens that were generated."""
        return self.reveal_step >= 0

    @property
    def attention_mask(self) -> Tensor | None:
        """Bool ``[B, L]``, true at real tokens; None where no sequence is padded."""
        real = self.reveal_step != PADDING
        return None if bool(real.all()) else real

    def to(self, device: torch.device | str) -> Trajectories:
        """The same on a device."""
        return Trajectories(self.x_0.to(device), self.reveal_step.to(device))


def draw_trajectories(
    sampler: Sampler,
    teacher: Denoiser,
    shape: tuple[int, int | Frame] | None = None,
    *,
    x_init: Tensor | None = None,
    attention_mask: Tensor | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    generator: Generator | None = None,
    device: torch.device | str | None = None,
) -> Trajectories:
    """Sample from a teacher, in evaluation mode, and note in which step each token was revealed.

    Of a sampler that masks tokens again, the step is the last one that wrote the token.

    Args:
        sampler: any that returns its history.
        teacher: any `Denoiser`.
        shape: see `Sampler.__call__`, as for the other arguments.
        x_init: int64 ``[B, L]``.
        attention_mask: bool ``[B, L]``, true at real tokens.
        model_kwargs: passed to the teacher by keyword.
        generator: source of randomness.
        device: of unconditional samples.

    Examples:
        >>> from discrete_distill.distillation.trajectories import draw_trajectories
        >>> sampler = ConfidenceSampler(process, num_steps=4)
        >>> trajectories = draw_trajectories(sampler, teacher, shape=(1, 8), generator=generator)
        >>> trajectories.reveal_step.unique(return_counts=True)  # Two tokens in each step.
        (tensor([0, 1, 2, 3]), tensor([2, 2, 2, 2]))
    """
    with evaluation_mode(teacher):
        out = sampler(
            teacher,
            shape,
            x_init=x_init,
            attention_mask=attention_mask,
            model_kwargs=model_kwargs,
            generator=generator,
            device=device,
            return_history=True,
        )
    assert out.history is not None
    reveal_step = torch.full_like(out.sequences, GIVEN)
    for step, (before, after) in enumerate(zip(out.history, out.history[1:], strict=False)):
        reveal_step[before != after] = step
    if attention_mask is not None:
        check_mask("attention_mask", attention_mask.bool(), out.sequences.shape)
        reveal_step[~attention_mask.bool()] = PADDING
    return Trajectories(out.sequences, reveal_step)
