"""Options of the corruption that a log-ratio reads samples in, one class for each way to choose what is masked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ....checks import check_count, check_number
from ....process import BetaTime, ConstantWeight, ElboWeight, MaskedDiffusion
from .fields import check_fields
from .paths import Paths


@dataclass(frozen=True, kw_only=True)
class ElboTimeWeight:
    """The weight of the ELBO at a time, clipped; see `ElboWeight`.

    Args:
        low: minimum weight.
        high: maximum weight.

    Raises:
        ValueError: unless ``0 <= low < high``.

    Examples:
        >>> corruption = CorruptionByTime(time_weight=ElboTimeWeight(low=0.1, high=5.0))
        >>> corruption.estimator_options(process, Paths())["weight"](torch.tensor([0.1, 0.5]))  # 1 / t, clipped
        tensor([5.0000, 2.0000])
    """

    low: float = 0.1
    high: float = 10.0

    def __post_init__(self) -> None:
        check_number("low", self.low, minimum=0.0)
        check_number("high", self.high, exclusive_minimum=self.low)


@dataclass(frozen=True, kw_only=True)
class CorruptionByTime:
    """Samples are corrupted to a time (arXiv 2509.25035).

    Args:
        num_draws: corruptions averaged for each sample.
        time_distribution: of the time. None: the time of an intermediate state of the sample's own path (the paper's
            coupled time), with the distribution of the paths, from which the time is drawn where a path has one step.
        time_weight: of the log-ratio (the paper's omega); None for a constant one.
        importance_weight: divide by the density of the time (the paper's pi).

    Raises:
        TypeError: if the number of draws is not an integer, or another field is of a wrong type.
        ValueError: if the number of draws is below 1.

    Examples:
        >>> corruption = CorruptionByTime(num_draws=2, time_distribution=BetaTime(a=2.0, b=2.0))
        >>> config = DiDiInstructConfig(credit=SequenceCredit(corruption=corruption))
        >>> corruption.coupled, CorruptionByTime().coupled
        (False, True)
    """

    num_draws: int = 1
    time_distribution: BetaTime | None = None
    time_weight: ElboTimeWeight | None = field(default_factory=ElboTimeWeight)
    importance_weight: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("num_draws", self.num_draws)

    @property
    def coupled(self) -> bool:
        """Whether samples are corrupted to a time of their own path."""
        return self.time_distribution is None

    def distribution(self, paths: Paths) -> BetaTime:
        """Return the distribution of times.

        Args:
            paths: whose distribution is taken where this has none.

        Raises:
            ValueError: if the paths have none either.
        """
        found = self.time_distribution or paths.time_distribution
        if found is None:
            raise ValueError(
                "samples are corrupted to the time of their path, which is on a grid: time_distribution = None; give "
                "paths or credit.corruption a time_distribution"
            )
        return found

    def estimator_options(self, process: MaskedDiffusion, paths: Paths) -> dict[str, Any]:
        """Return arguments of `ScoreFunctionIntegralKL`.

        Args:
            process: whose schedule the ELBO's weight depends on.
            paths: of the student.
        """
        weight = self.time_weight
        return {
            "by": "time",
            "corruptions": self.num_draws,
            "time_distribution": self.distribution(paths),
            "weight": ElboWeight(process.schedule, weight.low, weight.high) if weight else ConstantWeight(),
            "importance_weight": self.importance_weight,
        }


@dataclass(frozen=True, kw_only=True)
class CorruptionByCount:
    """Samples are corrupted to a number of masks, drawn uniformly.

    Args:
        num_draws: corruptions averaged for each sample.

    Raises:
        TypeError: if the number is not an integer.
        ValueError: if the number is below 1.

    Examples:
        >>> config = DiDiInstructConfig.recommended(credit=TokenCredit(corruption=CorruptionByCount(num_draws=2)))
        >>> config.credit.corruption.estimator_options(process, config.paths)
        {'by': 'count', 'corruptions': 2}
    """

    num_draws: int = 4

    def __post_init__(self) -> None:
        check_count("num_draws", self.num_draws)

    def estimator_options(self, process: MaskedDiffusion, paths: Paths) -> dict[str, Any]:
        """See `CorruptionByTime.estimator_options`."""
        return {"by": "count", "corruptions": self.num_draws}


@dataclass(frozen=True, kw_only=True)
class CorruptionByParts:
    """The positions of a sample are dealt out at random to equal parts, which are masked in turn.

    Args:
        num_parts: number of parts.

    Raises:
        TypeError: if the number is not an integer.
        ValueError: if the number is below 1.

    Examples:
        >>> config = DiDiInstructConfig.recommended(credit=TokenCredit(corruption=CorruptionByParts(num_parts=4)))
        >>> config.credit.corruption.estimator_options(process, config.paths)
        {'by': 'parts', 'corruptions': 4}
    """

    num_parts: int = 2

    def __post_init__(self) -> None:
        check_count("num_parts", self.num_parts)

    @property
    def num_draws(self) -> int:
        """Corruptions of each sample: one for each part."""
        return self.num_parts

    def estimator_options(self, process: MaskedDiffusion, paths: Paths) -> dict[str, Any]:
        """See `CorruptionByTime.estimator_options`."""
        return {"by": "parts", "corruptions": self.num_draws}


Corruption = CorruptionByTime | CorruptionByCount | CorruptionByParts
