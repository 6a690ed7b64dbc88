"""Ancestral sampling of masked diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ..canvas import Canvas
from ..kernels import sample_rows
from ..process import Denoiser, MaskedDiffusion
from .output import SamplerOutput
from .trajectory import StepCallback, walk


@dataclass(frozen=True)
class AncestralSampler:
    """The reverse process of MDLM (arXiv 2406.07524) on a uniform grid from 1 to 0.

    In the step from ``t`` to ``s`` each masked token is revealed with probability
    ``(alpha_s - alpha_t) / (1 - alpha_t)`` and only then drawn from the denoiser. The coins are drawn first; logits are
    computed for the revealed positions alone, in sequences that reveal any. The last step ends at 0 and reveals all
    that is left, so there is no extra pass.

    Args:
        process: mask and schedule.
        num_steps: steps; a step in which nothing is revealed anywhere costs no call.
        temperature: of the tokens (not of the coins); 1 is the denoiser's own law.
    """

    process: MaskedDiffusion
    num_steps: int = 16
    temperature: float = 1.0

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        shape: tuple[int, int] | None = None,
        *,
        x_init: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        return_history: bool = False,
        callback: StepCallback | None = None,
        **cond: Any,
    ) -> SamplerOutput:
        """Draw sequences.

        Args:
            denoiser: any `Denoiser`.
            shape: ``(B, L)``, or give ``x_init``.
            x_init: see `Canvas`.
            attention_mask: see `Canvas`; passed on to the denoiser.
            generator: one draw of it seeds the whole trajectory.
            device: of an unconditional sample.
            return_history: keep every state.
            callback: called with the step's number and the state ``[B, L]`` after each step.
            **cond: passed to the denoiser.
        """
        canvas = Canvas(
            self.process,
            shape,
            x_init=x_init,
            attention_mask=attention_mask,
            generator=generator,
            device=device,
        )

        def reverse_step(step: int, t: Tensor, s: Tensor) -> tuple[int, int]:
            return ancestral_step(canvas, denoiser, step, t, s, temperature=self.temperature, **cond), 0

        return walk(canvas, self.num_steps, reverse_step, return_history=return_history, callback=callback)


def ancestral_step(
    canvas: Canvas,
    denoiser: Denoiser,
    step: int,
    t: Tensor,
    s: Tensor,
    *,
    temperature: float = 1.0,
    **cond: Any,
) -> int:
    """One step from ``t`` to ``s`` (``[B]`` each), in place; returns the number of denoiser calls, 0 or 1."""
    rows = revealed_rows(canvas, step, t, s)
    if not len(rows):
        return 0
    drawn = sample_rows(
        canvas.logits(denoiser, rows, t, s, **cond),
        seed=canvas.seed,
        rows_R=rows,
        step=step,
        temperature=temperature,
        mask_token_id=canvas.process.mask_token_id,
    )
    canvas.write(rows, drawn.tokens[:, 0], drawn.log_probs[:, 0])
    return 1


def revealed_rows(canvas: Canvas, step: int, t: Tensor, s: Tensor) -> Tensor:
    """Flattened positions that the coins of this step reveal, int64 ``[N]``."""
    coins = canvas.coins(step, canvas.process.unmask_probability(t, s))
    return (coins & canvas.masked()).flatten().nonzero().squeeze(1)
