"""Options of advantages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....checks import check_count
from ...rewards import Baseline, Scale, check_advantages
from .fields import check_fields


@dataclass(frozen=True, kw_only=True)
class Advantages:
    """Normalisation of the rewards of samples; see `group_advantages`.

    The defaults are those of DiDi-Instruct (arXiv 2509.25035).

    Args:
        group_size: consecutive rows that are compared with each other (the paper's G).
        baseline: what is subtracted from a reward.
        scale: the standard deviation that a reward is divided by: of the group, of the batch, or none.
        clip: maximum size of an advantage; None for none.

    Raises:
        TypeError: if the group size is not an integer.
        ValueError: if a number is out of range or a name is unknown.

    Examples:
        >>> advantages = Advantages(group_size=8, baseline="leave_one_out", scale="none", clip=None)
        >>> DiDiInstructConfig(advantages=advantages).group_size
        8
    """

    group_size: int = 4
    baseline: Baseline = "group"
    scale: Scale = "group"
    clip: float | None = 3.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("group_size", self.group_size)
        check_advantages(self.scale, self.baseline, self.clip)

    @classmethod
    def recommended(cls, **changes: Any) -> Advantages:
        """Groups of 16, compared with the mean of the others, scaled over the batch; with ``changes``."""
        return cls(**{"group_size": 16, "baseline": "leave_one_out", "scale": "batch", **changes})

    def estimator_options(self) -> dict[str, Any]:
        """Arguments of `ScoreFunctionIntegralKL`; the group size is the rollout's."""
        return {"baseline": self.baseline, "scale": self.scale, "advantage_clip": self.clip}
