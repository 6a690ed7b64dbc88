"""A weight that follows the diversity of the student's paths: full where two samples agree too often, 0 where they do
not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...checks import check_count, check_number
from ...distributed.collectives import mean_over_processes


class DiversityControl:
    """Proportional control of the agreement of two samples.

    With ``o(a) = a / (1 - a)`` the odds of an agreement and ``a`` its moving average over rollouts,

        weight = clip((o(a) / o(a_0) - 1) / tolerance, 0, 1)

    ``a_0`` is what the student may reach: the mean of the first rollouts, those of the undistilled student, or that of
    the reference sequences where it is greater. So a student as diverse as its teacher or as the data is not held back,
    and one that gives up modes is. Our own; PPO's adaptive KL penalty (arXiv 1707.06347, section 4) is its relative,
    whose target is a divergence.

    Args:
        tolerance: relative excess of the odds at which the weight is 1.
        first: rollouts of the undistilled student; it should not be updated before them.
        decay: of the moving average.

    Raises:
        ValueError: if the tolerance is not positive, the decay is outside ``[0, 1)``, or ``first`` is below 1.

    Example:
        >>> control = DiversityControl(tolerance=0.05, first=1)
        >>> for agreement in (0.200, 0.220):
        ...     control.add(torch.tensor(agreement))
        >>> 0.0 < control.weight < 1.0
        True
    """

    def __init__(self, *, tolerance: float = 0.05, first: int = 10, decay: float = 0.8) -> None:
        check_number("tolerance", tolerance, above=0.0)
        check_number("decay", decay, least=0.0, below=1.0)
        self.tolerance = tolerance
        self.first = check_count("first", first)
        self.decay = decay
        self._rollouts = 0
        self._undistilled = 0.0
        self._average = 0.0
        self._references = 0
        self._reference = 0.0
        self._weight = 1.0

    @property
    def weight(self) -> float:
        """In ``[0, 1]``, that of the last rollout, so that the parts of a batch share it; 1 before the first one whose
        samples could be compared."""
        return self._weight

    def add(self, agreement: Tensor) -> None:
        """Take in one rollout; the mean over processes, all of which must call it. Waits for the device.

        Args:
            agreement: of two of its samples, a scalar in ``[0, 1]``.
        """
        value = float(mean_over_processes(agreement.detach().double()))
        self._rollouts += 1
        if self._rollouts <= self.first:
            self._undistilled += (value - self._undistilled) / self._rollouts
            self._average = self._undistilled
        else:
            self._average = self.decay * self._average + (1.0 - self.decay) * value
        self._weight = self._weight_now()

    def add_reference(self, agreement: Tensor) -> None:
        """Take in one batch of reference sequences, for the weights of later rollouts; as `add`.

        Args:
            agreement: of two of them, a scalar in ``[0, 1]``; NaN where they may not be compared.
        """
        value = agreement.detach().double()
        counts = value.isfinite().double()
        total, share = mean_over_processes(torch.stack([value.nan_to_num(), counts])).tolist()
        if share:
            self._references += 1
            self._reference += (total / share - self._reference) / self._references

    def _weight_now(self) -> float:
        before, now = odds(max(self._undistilled, self._reference)), odds(self._average)
        if now <= before:
            return 0.0
        return min(1.0, (now / before - 1.0) / self.tolerance) if before > 0.0 else 1.0

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on needs."""
        return {name: getattr(self, f"_{name}") for name in _STATE}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from `state_dict`."""
        for name in _STATE:
            setattr(self, f"_{name}", state[name])


_STATE = ("rollouts", "undistilled", "average", "references", "reference", "weight")


def odds(share: float) -> float:
    """``a / (1 - a)`` of a probability; infinite at 1."""
    return share / (1.0 - share) if share < 1.0 else float("inf")
