"""What a step of a method returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..divergence import LogRatio, SampleScores


class LogRatioOutput(NamedTuple):
    """Log-ratios of the student's corrupted samples, read while the discriminator was trained.

    Attributes:
        t: times of the corruption, ``[B]``.
        log_ratio: detached.

    Examples:
        >>> config = DiDiInstructConfig(log_ratio=DiscriminatorRatio(reuse_logits=True))
        >>> method = DiDiInstruct(networks, process, config)
        >>> rollout = method.rollout(8, 16, generator=generator)
        >>> out = method.loss("discriminator", rollout, reference=data, generator=generator)
        >>> reused = method.loss("student", rollout, log_ratio_output=out.log_ratio_output, generator=generator)
    """

    t: Tensor
    log_ratio: LogRatio


class Credit(NamedTuple):
    """What one part of a batch is taught with; see `DiDiInstruct.credits`.

    Attributes:
        scores: log-ratios of its samples.
        advantages: ``[B]``, or ``[B, L]`` with token credit, normalised over the whole batch.

    Examples:
        >>> method = DiDiInstruct(networks, process)
        >>> parts = [method.rollout(4, 16, generator=generator) for _ in range(2)]  # One batch in two parts.
        >>> credits = method.credits(parts, generators=[generator, generator])
        >>> num_tokens = sum(part.num_tokens() for part in parts)
        >>> for part, credit in zip(parts, credits):
        ...     out = method.loss("student", part, credit=credit, num_tokens=num_tokens, generator=generator)
        ...     out.loss.backward()
    """

    scores: SampleScores
    advantages: Tensor


@dataclass
class StepOutput:
    """A loss to go down, and figures to watch.

    Attributes:
        loss: scalar with graph.
        metrics: detached scalars by name.
        log_ratio_output: of the discriminator, where the configuration lets the student's loss use it again.

    Examples:
        >>> method = SDTT(networks, process, SDTTConfig(teacher_steps=4, rounds=1))
        >>> out = method.loss("student", method.rollout(reference=data, generator=generator))
        >>> out.loss.backward()
        >>> out.metrics["divergence"].item()  # The student is a copy of the teacher.
        0.0
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    log_ratio_output: LogRatioOutput | None = None
