"""Configuration shared by the methods that train on student paths."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .options import Advantages, Paths, with_changes
from .options.fields import check_fields
from .protocol import UpdatePlan

if TYPE_CHECKING:
    from .path_method import PathMethod

ConfigT = TypeVar("ConfigT", bound="PathConfig")


@dataclass(frozen=True, kw_only=True)
class PathConfig:
    """Paths of the student, advantages of their samples, and the reference sequences that a loop provides.

    Args:
        paths: paths of the student.
        advantages: normalisation of the rewards of their samples.
        reference: where reference sequences come from: "data", or "teacher" samples.

    Raises:
        TypeError: if a part is of another class.
        ValueError: if a name is unknown.
    """

    paths: Paths = field(default_factory=Paths.recommended)
    advantages: Advantages = field(default_factory=Advantages.recommended)
    reference: Literal["data", "teacher"] = "data"

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def recommended(cls: type[ConfigT], **changes: Any) -> ConfigT:
        """Return the recommended configuration, the defaults, with changes.

        Args:
            **changes: see `with_changes`.
        """
        return with_changes(cls(), **changes)

    @property
    def method_class(self) -> type[PathMethod]:
        """The class that this configures."""
        raise NotImplementedError

    def update_plan(self, *, discriminator: bool = False) -> UpdatePlan:
        """Order and number of the updates in a training step.

        Args:
            discriminator: whether one is given to the method; most methods train none.
        """
        raise NotImplementedError

    def loss_evaluations(self, batch: int, *, time_conditioning: bool = True) -> tuple[float, float]:
        """Expected forward and backward passes of one sequence through one network in the losses of student and
        auxiliary, beside the student's own along the path.

        Args:
            batch: sequences.
            time_conditioning: as for `Paths.evaluations`.
        """
        raise NotImplementedError
