"""Protocol of the configuration of a method, as loops and recipes read it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from .protocol import UpdatePlan


class MethodConfig:
    """Configuration of a method: a dataclass derived from this class.

    Attributes:
        method_class: the class that is configured, whose ``config_class`` this is.
        reference: where reference sequences come from, "data" or "teacher" samples.

    Examples:
        >>> class NelboConfig(MethodConfig):  # `BaseMethod` has the method that it configures.
        ...     def update_plan(self, *, discriminator=False):
        ...         return UpdatePlan(order=("student",), reads_reference=("student",))
        >>> NelboConfig().update_plan().planned_updates(100), NelboConfig().group_size
        ({'student': 100}, 1)
    """

    method_class: ClassVar[Any]
    reference: Literal["data", "teacher"] = "data"

    @property
    def group_size(self) -> int:
        """Consecutive rows of a batch that are compared with each other; 1 if samples are not compared."""
        return 1

    @property
    def step_conditioning(self) -> bool:
        """Whether the student is passed the end of its step."""
        return False

    @property
    def auxiliary_step_conditioning(self) -> bool:
        """Whether the auxiliary, where one is trained, is passed the end of a step."""
        return False

    def update_plan(self, *, discriminator: bool = False) -> UpdatePlan:
        """Order and number of the updates in a training step.

        Args:
            discriminator: whether one is given to the method; most methods train none.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no update_plan: define update_plan(*, discriminator=False)"
        )

    def path_evaluations(self, batch: int, *, time_conditioning: bool = True) -> tuple[float, float, float]:
        """Expected number of steps of a path, of states that the student evaluates, and of those with a graph. Without
        a path the student evaluates each sequence once.

        Args:
            batch: sequences.
            time_conditioning: whether the student's network reads the time of a state.
        """
        return 1.0, float(batch), float(batch)

    def loss_evaluations(self, batch: int, *, time_conditioning: bool = True) -> tuple[float, float]:
        """Expected forward and backward passes of one sequence through one network in the losses of student and
        auxiliary, in addition to those of `path_evaluations`.

        Args:
            batch: sequences.
            time_conditioning: as for `path_evaluations`.
        """
        raise NotImplementedError
