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
    """NELBO of the samples, by numbers of masks, in nats a token.

    Args:
        auxiliary: passed the last step of the paths, if it accepts one.
        process: corrupts the samples.
        rollout: paths of the student.
        num_tokens: generated tokens of the batch.
        generator: source of randomness.
    """
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
