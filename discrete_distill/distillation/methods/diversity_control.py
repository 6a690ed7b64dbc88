"""A weight that follows the diversity of the student's paths: full where two samples agree too often, 0 where they do
not."""

from __future__ import annotations

import math
from copy import copy
from typing import Any

import torch
from torch import Tensor

from ...checks import check_count, check_number
from ...distributed.collectives import mean_over_processes


class DiversityControl:
    """Proportional control of the agreement of two samples.

    With ``o(a) = a / (1 - a)`` the odds of an agreement, ``a`` its moving average over rollouts and ``e`` the standard
    error of ``a - a_0``,

        weight = clip((o(a - e) / o(a_0) - 1) / tolerance, 0, 1)

    so that an excess that the noise of small batches explains has no weight. ``e`` is that of independent rollouts
    which vary as the first ones do.

    ``a_0`` is the agreement that the student may reach: the undistilled student's at the same numbers of steps (the
    moving average of its means over the first rollouts), or that of the reference sequences where it is greater.
    Samples drawn in fewer steps agree more often, so that one level for all numbers of steps would let the longer paths
    lose diversity. Our own; the adaptive KL penalty of PPO (arXiv 1707.06347, section 4) is related, with a divergence
    as its target.

    Args:
        tolerance: relative excess of the odds at which the weight is 1.
        first: number of rollouts of the undistilled student, which should not be updated before them.
        decay: of the moving averages.

    Raises:
        ValueError: if the tolerance is not positive, the decay is outside ``[0, 1)``, or ``first`` is below 1.

    Examples:
        >>> control = DiversityControl(tolerance=0.05, first=1)
        >>> for agreement in (0.200, 0.220):
        ...     control.add(torch.tensor(agreement), num_steps=4)
        >>> 0.0 < control.weight < 1.0
        True
    """

    def __init__(self, *, tolerance: float = 0.05, first: int = 10, decay: float = 0.8) -> None:
        check_number("tolerance", tolerance, exclusive_minimum=0.0)
        check_number("decay", decay, minimum=0.0, exclusive_maximum=1.0)
        self.tolerance = tolerance
        self.first = check_count("first", first)
        self.decay = decay
        self._rollouts = 0
        self._undistilled: dict[int, tuple[int, float]] = {}
        self._squares = 0.0
        self._average = 0.0
        self._allowed = 0.0
        self._references = 0
        self._reference = 0.0
        self._weight = 1.0

    @property
    def weight(self) -> float:
        """In ``[0, 1]``, that of the last rollout, so that the parts of a batch share it; 1 before the first one whose
        samples could be compared."""
        return self._weight

    def add(self, agreement: Tensor, *, num_steps: int) -> None:
        """Add one rollout; the mean over processes, all of which must call it. Waits for the device.

        Args:
            agreement: of two of its samples, a scalar in ``[0, 1]``.
            num_steps: of its paths.
        """
        value = float(mean_over_processes(agreement.detach().double()))
        self._rollouts += 1
        if self._rollouts <= self.first:
            count, mean = self._undistilled.get(num_steps, (0, 0.0))
            self._undistilled[num_steps] = (count + 1, mean + (value - mean) / (count + 1))
            self._squares += (value - mean) ** 2 * count / (count + 1)
            self._average = self._allowed = self._undistilled_mean()
        else:
            _, allowed = self._undistilled.get(num_steps, (0, self._undistilled_mean()))
            self._average = self.decay * self._average + (1.0 - self.decay) * value
            self._allowed = self.decay * self._allowed + (1.0 - self.decay) * allowed
        self._weight = self._weight_now()

    def _undistilled_mean(self) -> float:
        total = sum(count for count, _ in self._undistilled.values())
        return sum(count * mean for count, mean in self._undistilled.values()) / total

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
        before = odds(max(self._allowed, self._reference))
        now = odds(max(0.0, self._average - self._standard_error()))
        if now <= before:
            return 0.0
        return min(1.0, (now / before - 1.0) / self.tolerance) if before > 0.0 else 1.0

    def _standard_error(self) -> float:
        """Of the moving average less the mean of the first rollouts; 0 where their variance is unknown."""
        count = sum(number for number, _ in self._undistilled.values())
        freedom = count - len(self._undistilled)
        if not freedom:
            return 0.0
        averaged = (1.0 - self.decay) / (1.0 + self.decay)
        return math.sqrt(self._squares / freedom * (averaged + 1.0 / count))

    def state_dict(self) -> dict[str, Any]:
        """The counts and averages that a resumed run needs."""
        return {name: copy(getattr(self, f"_{name}")) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from `state_dict`."""
        for name in _STATE:
            setattr(self, f"_{name}", copy(state[name]))


_STATE = ("rollouts", "undistilled", "squares", "average", "allowed", "references", "reference", "weight")


def odds(share: float) -> float:
    """``a / (1 - a)`` of a probability; infinite at 1."""
    return share / (1.0 - share) if share < 1.0 else float("inf")
