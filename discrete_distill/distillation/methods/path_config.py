"""Configuration shared by the methods that train on student paths."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from .method_config import MethodConfig
from .options import Advantages, Paths, with_changes
from .options.fields import check_fields

ConfigT = TypeVar("ConfigT", bound="PathConfig")


@dataclass(frozen=True, kw_only=True)
class PathConfig(MethodConfig):
    """Paths of the student, advantages of their samples, and the reference sequences that a loop provides.

    Args:
        paths: paths of the student.
        advantages: normalisation of the rewards of their samples.
        reference: where reference sequences come from: "data", or "teacher" samples.

    Raises:
        TypeError: if a part is of another class.
        ValueError: if a name is unknown.

    Examples:
        >>> config = IDLMConfig.recommended(paths={"num_steps": (4,)}, advantages={"group_size": 8})
        >>> isinstance(config, PathConfig), config.group_size, config.step_conditioning
        (True, 8, True)
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
    def group_size(self) -> int:
        """Consecutive rows of a batch that are compared with each other."""
        return self.advantages.group_size

    @property
    def step_conditioning(self) -> bool:
        """Whether the student is passed the end of its step."""
        return self.paths.step_conditioning

    def path_evaluations(self, batch: int, *, time_conditioning: bool = True) -> tuple[float, float, float]:
        """See `Paths.evaluations`."""
        return self.paths.evaluations(batch, time_conditioning=time_conditioning)
