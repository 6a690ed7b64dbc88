"""Options of the log-ratio between student and teacher, one class for each estimator of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ....checks import check_count, check_number
from .fields import check_fields


@dataclass(frozen=True, kw_only=True)
class DiscriminatorRatio:
    """The log-ratio of a discriminator between corrupted samples and reference sequences (arXiv 2509.25035).

    Args:
        label_smoothing: of the discriminator's loss, in ``[0, 1)``.
        reuse_logits: read the reward from the logits that the discriminator was trained with in the same step: one
            pass fewer, one update behind. Otherwise the updated discriminator is evaluated (paper).
        warmup: training steps in which the discriminator alone is updated.

    Raises:
        TypeError: if the warm-up is not an integer, or ``reuse_logits`` no bool.
        ValueError: if a number is out of range.

    Examples:
        >>> plan = DiDiInstructConfig(log_ratio=DiscriminatorRatio(warmup=2)).update_plan()
        >>> plan.networks(0), plan.networks(2)
        (('discriminator',), ('discriminator', 'student'))
    """

    label_smoothing: float = 0.1
    reuse_logits: bool = False
    warmup: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_number("label_smoothing", self.label_smoothing, minimum=0.0, exclusive_maximum=1.0)
        check_count("warmup", self.warmup, minimum=0)


@dataclass(frozen=True, kw_only=True)
class AuxiliaryRatio:
    """The log-ratio of an auxiliary denoiser, fitted to the student, and the teacher.

    Args:
        updates: number of updates of the auxiliary for each update of the student.
        warmup: training steps in which the auxiliary alone is updated.
        step_conditioning: pass the auxiliary the number of steps that its samples were drawn in, so that each number
            is compared with the teacher by itself; otherwise the mixture of all is.

    Raises:
        TypeError: if a number is not an integer, or ``step_conditioning`` no bool.
        ValueError: if a number is out of range.

    Examples:
        >>> plan = DiDiInstructConfig.recommended(log_ratio=AuxiliaryRatio(updates=2, warmup=0)).update_plan()
        >>> plan.networks(0)
        ('student', 'auxiliary', 'auxiliary')
    """

    updates: int = 4
    warmup: int = 10
    step_conditioning: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("updates", self.updates)
        check_count("warmup", self.warmup, minimum=0)


@dataclass(frozen=True, kw_only=True)
class AutoregressiveRatio:
    """The log-ratio of two autoregressive networks on whole samples: a target, whose distribution the student is to
    have, and a copy of it that is fitted to the student; see `AutoregressiveLogRatio`.

    A masked teacher of few steps is no better than itself in many; the target is a network of its own.

    Args:
        updates: number of updates of the copy for each update of the student.
        warmup: training steps in which the copy alone is updated.

    Raises:
        TypeError: if a number is not an integer.

    Examples:
        >>> plan = DiDiInstructConfig.autoregressive(log_ratio={"updates": 2, "warmup": 0}).update_plan()
        >>> plan.networks(0)
        ('student', 'auxiliary', 'auxiliary')
    """

    updates: int = 4
    warmup: int = 10

    def __post_init__(self) -> None:
        check_count("updates", self.updates)
        check_count("warmup", self.warmup, minimum=0)


@dataclass(frozen=True, kw_only=True)
class PathRatio:
    """The log-ratio of the student's own probabilities in a step and the teacher: an upper bound, without a network.

    Examples:
        >>> config = DiDiInstructConfig(log_ratio=PathRatio(), credit=VocabularyCredit())
        >>> config.update_plan().networks(0)
        ('student',)
    """

    warmup: ClassVar[int] = 0
