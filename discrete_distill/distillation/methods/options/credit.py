"""Options of credit: what an advantage belongs to, one class for each kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ....checks import check_count, check_number
from ....process import MaskedDiffusion
from ...divergence import LogRatioEstimator, ScoreFunctionIntegralKL
from ...rewards import LogRatioReward
from .advantages import Advantages
from .corruption import Corruption, CorruptionByCount, CorruptionByTime
from .fields import check_fields
from .paths import Paths


@dataclass(frozen=True, kw_only=True)
class SequenceCredit:
    """One advantage for the whole sequence (arXiv 2509.25035).

    Args:
        corruption: corruption in which the log-ratio of a sample is read.

    Raises:
        TypeError: if the corruption is of another class.

    Examples:
        >>> method = DiDiInstruct(networks, process, DiDiInstructConfig(credit=SequenceCredit()))
        >>> rollout = method.rollout(8, 16, generator=generator)
        >>> method.credits([rollout], generators=[generator])[0].advantages.shape
        torch.Size([8])
    """

    corruption: Corruption = field(default_factory=CorruptionByTime)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class TokenCredit:
    """An advantage for each token, from the log-ratios around it: less variance, blind to what is further off.

    Args:
        window: positions up to this far away count for a token.
        window_before: positions up to this far before a token, where they are not as many as behind it; see
            `ScoreFunctionIntegralKL`.
        corruption: corruption in which the log-ratio of a sample is read.

    Raises:
        TypeError: if the window is not an integer, or the corruption is of another class.
        ValueError: if the window is negative.

    Examples:
        >>> config = DiDiInstructConfig(log_ratio=AuxiliaryRatio(), credit=TokenCredit(window=2))
        >>> method = DiDiInstruct(networks, process, config)
        >>> rollout = method.rollout(8, 16, generator=generator)
        >>> method.credits([rollout], generators=[generator])[0].advantages.shape
        torch.Size([8, 16])
    """

    window: int = 6
    window_before: int | None = None
    corruption: Corruption = field(default_factory=CorruptionByCount)

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("window", self.window, minimum=0)
        if self.window_before is not None:
            check_count("window_before", self.window_before, minimum=0)


@dataclass(frozen=True, kw_only=True)
class VocabularyCredit:
    """The log-ratio of every token of the vocabulary at every step, of which none is drawn.

    Args:
        mask_ratio: minimum fraction of a step's masked positions that is scored, given the others, in ``(0, 1]``.

    Raises:
        ValueError: if the fraction is out of range.

    Examples:
        >>> config = DiDiInstructConfig(log_ratio=AuxiliaryRatio(), credit=VocabularyCredit(mask_ratio=0.25))
        >>> method = DiDiInstruct(networks, process, config)
        >>> rollout = method.rollout(8, 16, generator=generator)
        >>> method.loss("student", rollout, reference=data, generator=generator).loss.backward()
    """

    mask_ratio: float = 0.5

    def __post_init__(self) -> None:
        check_number("mask_ratio", self.mask_ratio, exclusive_minimum=0.0, maximum=1.0)


def make_estimator(
    credit: SequenceCredit | TokenCredit,
    process: MaskedDiffusion,
    log_ratio: LogRatioEstimator,
    *,
    paths: Paths,
    advantages: Advantages,
    reward_clip: float = float("inf"),
) -> ScoreFunctionIntegralKL:
    """Return the estimator of the integral KL that options describe.

    Args:
        credit: kind of credit, with its corruption.
        process: corrupts the samples.
        log_ratio: the reward is its negative.
        paths: of the student; where they branch, rows of a group are masked alike.
        advantages: normalisation of the rewards.
        reward_clip: maximum size of a raw log-ratio, nats.
    """
    options: dict[str, Any] = {}
    if isinstance(credit, TokenCredit):
        options = {"credit": "token", "window": credit.window, "window_before": credit.window_before}
    return ScoreFunctionIntegralKL(
        process,
        log_ratio,
        shared_masks=paths.branching,
        reward=LogRatioReward(reward_clip),
        **options,
        **credit.corruption.estimator_options(process, paths),
        **advantages.estimator_options(),
    )
