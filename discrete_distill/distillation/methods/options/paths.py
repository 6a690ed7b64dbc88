"""Options of student paths."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any, Literal

from ....checks import check_count, check_counts
from ....process import BetaTime, MaskedDiffusion, UnmaskingOrder, check_unmasking_order
from ...paths import IntermediateStateMatcher
from .fields import check_fields


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Paths of the student. The defaults are those of DiDi-Instruct (arXiv 2509.25035).

    Args:
        num_steps: numbers of steps of a path; one is drawn for each batch. With ``(1,)`` a sample is drawn at once,
            without the paper's score decomposition.
        time_distribution: of the intermediate times (the paper's pi); None for the even grid of the samplers.
        gradient_steps: steps of a path that keep a graph, drawn at random and weighted; None for all.
        branching: rows of a group share their path up to the one step that keeps a graph, and the masks that their
            rewards are read with. See `IntermediateStateMatcher`.
        order: "random", that of the reverse process, or "strided": masks that share a step lie apart, as they are then
            to be sampled, by `AncestralSampler` with this order.
        step_conditioning: pass the student the end of its step; its initial outputs are the teacher's.

    Raises:
        TypeError: if a number of steps is not an integer, or another field is of a wrong type.
        ValueError: if a number of steps is below 1, or there is none.

    Examples:
        >>> paths = Paths(num_steps=(4,), time_distribution=None)
        >>> rollout = paths.matcher(process)(student, (8, 16), generator=generator)
        >>> rollout.steps[1].t.unique()  # The grid of four even steps.
        tensor([0.7500])
    """

    num_steps: tuple[int, ...] = (2,)
    time_distribution: BetaTime | None = field(default_factory=lambda: BetaTime(0.02, 0.98, a=1.0, b=1.0))
    gradient_steps: int | None = None
    branching: bool = False
    order: UnmaskingOrder = "random"
    step_conditioning: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_counts("num_steps", self.num_steps)
        check_unmasking_order(self.order)
        if self.gradient_steps is not None:
            check_count("gradient_steps", self.gradient_steps)

    @classmethod
    def recommended(cls, **changes: Any) -> Paths:
        """Paths of 4 and 8 steps on the grid of the samplers, whose ends the student is passed; with ``changes``."""
        return cls(**{"num_steps": (4, 8), "time_distribution": None, "step_conditioning": True, **changes})

    def matcher(
        self, process: MaskedDiffusion, *, positions: Literal["revealed", "masked"] = "revealed"
    ) -> IntermediateStateMatcher:
        """Return what draws the paths.

        Args:
            process: mask and schedule.
            positions: positions whose logits a step keeps; see `IntermediateStateMatcher`.
        """
        return IntermediateStateMatcher(
            process,
            num_steps=self.num_steps,
            time_distribution=self.time_distribution,
            positions=positions,
            gradient_steps=self.gradient_steps,
            branching=self.branching,
            order=self.order,
        )

    def evaluations(self, batch: int, *, time_conditioning: bool = True) -> tuple[float, float, float]:
        """Expected number of steps of a path, of states that the student evaluates, and of those with a graph; every
        state is assumed to reveal something in every sequence.

        Args:
            batch: sequences.
            time_conditioning: whether the student's network reads the time of a state.
        """
        steps = statistics.fmean(self.num_steps)
        kept = 1.0 if self.branching else min(float(self.gradient_steps or steps), steps)
        # All-mask states with one time, or for a network that reads none, are evaluated as one.
        one_each = self.time_distribution is not None and steps > 1.0 and (time_conditioning or self.step_conditioning)
        states = steps * batch if one_each else 1.0 + (steps - 1.0) * batch
        return steps, states, kept / steps * states
