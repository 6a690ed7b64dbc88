"""A weight that follows the diversity of the student's paths: full where two samples agree too often, 0 where they do
not."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..checks import check_count, check_number
from ..collective import mean_over_processes


class DiversityControl:
    """Proportional control of the agreement of two samples.

    With ``o(a) = a / (1 - a)`` the odds of an agreement, ``a`` its moving average over rollouts and ``a_0`` the mean of
    the first rollouts, those of the undistilled student,

        weight = clip((o(a) / o(a_0) - 1) / tolerance, 0, 1)

    so that a student as diverse as its teacher is not held back, and one that gives up modes is. Our own; PPO's
    adaptive KL penalty (arXiv 1707.06347, section 4) is its relative, whose target is a divergence.

    Args:
        tolerance: relative excess of the odds at which the weight is 1.
        first: rollouts that give ``a_0``; the student should not be updated before them.
        decay: of the moving average.

    Raises:
        ValueError: if the tolerance is not positive, the decay is outside ``[0, 1)``, or ``first`` is below 1.

    Example:
        >>> control = DiversityControl(tolerance=0.05, first=1)
        >>> for agreement in (0.200, 0.204, 0.2):
        ...     control.add(torch.tensor(agreement))
        >>> 0.0 < control.weight < 1.0
        True
    """

    def __init__(self, *, tolerance: float = 0.05, first: int = 10, decay: float = 0.7) -> None:
        check_number("tolerance", tolerance, above=0.0)
        check_number("decay", decay, least=0.0, below=1.0)
        self.tolerance = tolerance
        self.first = check_count("first", first)
        self.decay = decay
        self._seen = 0
        self._baseline = 0.0
        self._average = 0.0

    def add(self, agreement: Tensor) -> None:
        """Take in one rollout; the mean over processes, all of which must call it. Waits for the device.

        Args:
            agreement: of two of its samples, a scalar in ``[0, 1]``.
        """
        value = float(mean_over_processes(agreement.detach().double()))
        self._seen += 1
        if self._seen <= self.first:
            self._baseline += (value - self._baseline) / self._seen
            self._average = self._baseline
        else:
            self._average = self.decay * self._average + (1.0 - self.decay) * value

    @property
    def weight(self) -> float:
        """In ``[0, 1]``; 1 before the first rollout whose samples could be compared."""
        if not self._seen:
            return 1.0
        before, now = _odds(self._baseline), _odds(self._average)
        if now <= before:
            return 0.0
        return min(1.0, (now / before - 1.0) / self.tolerance) if before > 0.0 else 1.0

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on needs."""
        return {"seen": self._seen, "baseline": self._baseline, "average": self._average}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from `state_dict`."""
        self._seen, self._baseline, self._average = state["seen"], state["baseline"], state["average"]


def _odds(share: float) -> float:
    return share / (1.0 - share) if share < 1.0 else float("inf")
