"""How every sampler is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ..process import Denoiser
from .output import SamplerOutput
from .prompts import Frame

StepCallback = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class SamplerCall:
    """The arguments of one call; see `Sampler.__call__`.

    Attributes:
        denoiser: as it is given.
        inputs: arguments of the `SamplerState` by name, from ``shape`` to ``first_row``.
        return_history: keep every state.
        callback: called after each step.
    """

    denoiser: Denoiser
    inputs: Mapping[str, Any]
    return_history: bool = False
    callback: StepCallback | None = None


class Sampler:
    """Base of all samplers: one call signature.

    Examples:
        >>> samplers = [AncestralSampler(process, num_steps=2), FirstHittingSampler(process)]
        >>> [sampler(teacher, shape=(2, 8), generator=generator).nfe for sampler in samplers]
        [2, 8]
    """

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        shape: tuple[int, int | Frame] | None = None,
        *,
        x_init: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_mask: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        first_row: int = 0,
        return_history: bool = False,
        callback: StepCallback | None = None,
    ) -> SamplerOutput:
        """Draw sequences.

        Args:
            denoiser: any `Denoiser`.
            shape: ``(B, L)`` of unconditional samples, ``(B, Frame)`` for fixed tokens around them; or give ``x_init``.
            x_init: int64 ``[B, L]``: prompt, suffix or infill tokens, and masks where tokens are wanted.
            attention_mask: bool ``[B, L]``, true at real tokens; padding is never written. Passed to all networks.
            generation_mask: bool ``[B, L]``, true at positions that may be generated; masks elsewhere stay.
            model_kwargs: passed to all networks by keyword. Tensors with an entry for each sequence follow their
                sequences.
            generator: one draw of it seeds the whole trajectory.
            device: of unconditional samples; that of the denoiser's parameters by default, or the generator's.
            first_row: number of the first sequence: a batch that is drawn in parts, each with the same generator state
                and its own ``first_row``, gets the tokens of the whole.
            return_history: keep every state.
            callback: called with the step's number and the tokens ``[B, L]`` after each step.

        Returns:
            Sequences int64 ``[B, L]``, their log-probabilities, and the costs.

        Raises:
            TypeError: if an argument has a wrong type, a keyword argument has a name that the library uses, or a
                network does not take one.
            ValueError: if shapes do not fit, logits were NaN or all -inf somewhere (the position is named), or the
                sampler does not honour an argument that was given.

        Examples:
            >>> sampler = AncestralSampler(process, num_steps=4)
            >>> prompt = torch.tensor([[1, 2, 8, 8, 8, 3]])  # The masks are filled.
            >>> sampler(teacher, x_init=prompt, generator=generator).sequences[0, [0, 1, 5]].tolist()
            [1, 2, 3]
        """
        inputs = {
            "shape": shape, "x_init": x_init, "attention_mask": attention_mask, "generation_mask": generation_mask,
            "model_kwargs": model_kwargs, "generator": generator, "device": device, "first_row": first_row,
        }  # fmt: skip
        return self.draw(SamplerCall(denoiser, inputs, return_history, callback))

    def draw(self, call: SamplerCall) -> SamplerOutput:
        """Draw the sequences of a call."""
        raise NotImplementedError
