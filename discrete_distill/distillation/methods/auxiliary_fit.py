"""The auxiliary denoiser's loss on the student's samples."""

from __future__ import annotations

from torch import Generator, Tensor

from ...process import Denoiser, MaskedDiffusion
from ..rollout import Rollout
from .output import StepOutput


def fit_auxiliary(
    auxiliary: Denoiser,
    process: MaskedDiffusion,
    rollout: Rollout,
    *,
    num_tokens: Tensor | float,
    generator: Generator | None = None,
) -> StepOutput:
    """NELBO of the samples, by numbers of masks, in nats a token."""
    sequences, loss_mask = rollout.judged()
    nelbo = process.nelbo(
        auxiliary,
        sequences,
        by="count",
        generation_mask=loss_mask,
        generator=generator,
        s=rollout.last_time,
        model_kwargs=rollout.denoiser_kwargs(),
    )
    loss = nelbo.nats.sum() / num_tokens
    return StepOutput(loss, {"auxiliary_loss": loss.detach()})
