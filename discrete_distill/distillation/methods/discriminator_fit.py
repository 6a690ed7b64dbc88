"""The discriminator's loss: student states against reference sequences.

Shape suffixes: B batch, L length.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Generator, Tensor, nn

from ... import draws
from ...models import discriminator_accuracy, discriminator_loss, masked_mean
from ...process import MaskedDiffusion, evaluation_mode
from ..divergence import LogRatio
from ..rollout import Rollout
from .config import DiDiInstructConfig
from .options import CorruptionByTime, DiscriminatorRatio, SequenceCredit, TokenCredit
from .output import LogRatioOutput, StepOutput
from .sample_credit import own_time


def fit_discriminator(
    discriminator: nn.Module,
    process: MaskedDiffusion,
    config: DiDiInstructConfig,
    rollout: Rollout,
    reference: Tensor,
    *,
    num_tokens: Tensor | float,
    generator: Generator | None = None,
) -> StepOutput:
    """Binary cross-entropy between student states and reference tokens corrupted to the same times; see
    `DiDiInstruct.discriminator_loss`. A discriminator that does not give the reward has no label smoothing.

    Args:
        discriminator: a `RatioNetwork`.
        process: corrupts samples and reference.
        config: of the method.
        rollout: paths of the student.
        reference: clean tokens, int64 ``[B, L]``; given positions must agree with the rollout's.
        num_tokens: generated tokens of the batch.
        generator: source of randomness.

    Raises:
        ValueError: if the reference has another shape than the samples.
    """
    rollout.check_reference(reference)
    x_t, t = judged_states(process, config, rollout, generator)
    log_ratio = config.log_ratio if isinstance(config.log_ratio, DiscriminatorRatio) else None
    reference, loss_mask_reference = rollout.judged(reference)
    x_t_reference = process.corrupt(reference, t, generation_mask=loss_mask_reference, generator=generator)
    loss_mask = rollout.loss_mask
    if log_ratio is not None:
        loss_mask = process.judged_positions(x_t, loss_mask)
        loss_mask_reference = process.judged_positions(x_t_reference, loss_mask_reference)
    kwargs = rollout.denoiser_kwargs()
    reused = log_ratio is not None and log_ratio.reuse_logits
    with evaluation_mode(discriminator, parametrizations=False) if reused else nullcontext():
        logits, logits_reference = discriminator(x_t, t, **kwargs), discriminator(x_t_reference, t, **kwargs)
    loss = discriminator_loss(
        logits,
        logits_reference,
        loss_mask,
        loss_mask_reference,
        label_smoothing=0.0 if log_ratio is None else log_ratio.label_smoothing,
        weight_B=rollout.loss_mask.sum(1) / num_tokens,
    )
    accuracy = discriminator_accuracy(logits, logits_reference, loss_mask, loss_mask_reference)
    metrics = {"discriminator_loss": loss.detach(), "discriminator_accuracy": accuracy}
    if not reused:
        return StepOutput(loss, metrics)
    values = torch.where(loss_mask, logits.detach().float(), 0.0)
    return StepOutput(loss, metrics, LogRatioOutput(t, LogRatio(values, masked_mean(values, loss_mask))))


def judged_states(
    process: MaskedDiffusion, config: DiDiInstructConfig, rollout: Rollout, generator: Generator | None
) -> tuple[Tensor, Tensor]:
    """Student states that the discriminator sees, int64 ``[B, L]``, and their times, ``[B]``: samples corrupted as for
    the log-ratio where it gives the reward; otherwise states of the path, which re-ranking in a sampler meets.
    """
    if isinstance(config.log_ratio, DiscriminatorRatio):
        t = _corruption_time(config, rollout, generator)
        sequences, loss_mask = rollout.judged()
        return process.corrupt(sequences, t, generation_mask=loss_mask, generator=generator), t
    states = torch.stack([step.x_s for step in rollout.steps])
    times = torch.stack([step.s for step in rollout.steps])
    batch = torch.arange(states.shape[1], device=states.device)
    which = draws.randint(len(states), batch.shape, device=states.device, generator=generator)
    x_s = states[which, batch]
    if rollout.end is not None:  # Behind the end of its sample a state shows no token of the student's.
        behind = rollout.generation_mask & ~rollout.loss_mask
        x_s = torch.where(behind, rollout.end.token_id, x_s)
    return x_s, times[which, batch]


def _corruption_time(config: DiDiInstructConfig, rollout: Rollout, generator: Generator | None) -> Tensor:
    assert isinstance(config.credit, SequenceCredit | TokenCredit)
    corruption = config.credit.corruption
    assert isinstance(corruption, CorruptionByTime)
    own = own_time(rollout) if corruption.coupled else None
    if own is not None:
        return own
    groups = len(rollout.sequences) // rollout.group_size
    distribution = corruption.distribution(config.paths)
    t = distribution.sample(groups, device=rollout.sequences.device, generator=generator).t
    return t.repeat_interleave(rollout.group_size)
