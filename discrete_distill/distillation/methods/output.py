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
    """

    t: Tensor
    log_ratio: LogRatio


class Credit(NamedTuple):
    """What one part of a batch is taught with; see `DiDiInstruct.credits`.

    Attributes:
        scores: log-ratios of its samples.
        advantages: ``[B]``, or ``[B, L]`` with token credit, normalised over the whole batch.
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
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    log_ratio_output: LogRatioOutput | None = None
