"""Configuration shared by the methods that train on student paths."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from ...checks import check_all_counts, check_count
from ..rewards import Baseline, Scale, check_advantages
from .method_config import MethodConfig


@dataclass(kw_only=True)
class PathConfig(MethodConfig):
    """Paths of the student, advantages of their samples, and what a loop around asks for.

    The values of DiDi-Instruct (arXiv 2509.25035) are given as "paper".

    Args:
        path_steps: numbers of steps of a path; one is drawn for each batch (paper: 2).
        gradient_steps: steps of a path that keep a graph, drawn at random and weighted; None for all (paper: all).
        branching: rows of a group share their path up to the one step that keeps a graph, and the masks that their
            rewards are read with (paper: off). See `IntermediateStateMatcher`.
        group_size: G, consecutive rows compared with each other (paper: 4).
        baseline: what is subtracted from rewards (paper: group mean).
        scale: what rewards are divided by (paper: group standard deviation).
        advantage_clip: greatest normalised reward (paper: 3).
        reference: where reference sequences come from: "data" (the authors' code) or "teacher" samples (their
            Algorithm 1).
        step_conditioning: tell the student where its step ends; its first answers are the teacher's.

    Raises:
        TypeError: if a number that counts something is not whole.
        ValueError: if a number is out of range or a name is unknown.
    """

    path_steps: tuple[int, ...] = (4, 8)
    gradient_steps: int | None = None
    branching: bool = False
    group_size: int = 16
    baseline: Baseline = "leave_one_out"
    scale: Scale = "batch"
    advantage_clip: float | None = 3.0
    reference: Literal["data", "teacher"] = "data"
    step_conditioning: bool = True

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise ValueError(f"{name} is one of {get_args(hint)}, got {getattr(self, name)!r}")
        check_all_counts(self, "group_size")
        if self.gradient_steps is not None:
            check_count("gradient_steps", self.gradient_steps)
        for steps in self.path_steps:
            check_count("path_steps", steps)
        if not self.path_steps:
            raise ValueError("path_steps needs one or more numbers of steps, got none")
        check_advantages(self.scale, self.baseline, self.advantage_clip)

    def path_evaluations(self, batch: int, *, time_conditioning: bool = True) -> tuple[float, float, float]:
        """Expected number of steps of a path, of states that the student evaluates, and of those with a graph; every
        state is assumed to reveal something in every sequence.

        Args:
            batch: sequences.
            time_conditioning: whether the student's network reads the time of a state.
        """
        steps = statistics.fmean(self.path_steps)
        kept = 1.0 if self.branching else min(float(self.gradient_steps or steps), steps)
        # All-mask states with one time, or for a network that reads none, are evaluated as one.
        states = 1.0 + (steps - 1.0) * batch
        return steps, states, kept / steps * states
