"""Changes to a nested configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

ConfigT = TypeVar("ConfigT")


def with_changes(config: ConfigT, **changes: Any) -> ConfigT:
    """Copy a configuration with some fields changed, at any depth.

    Args:
        config: a dataclass, which may hold others; it stays as it is.
        **changes: by name of a field. A mapping changes fields of the part that stands there; any other value takes
            the part's place.

    Returns:
        The changed copy, whose parts are checked again.

    Raises:
        TypeError: if a field is unknown, or a mapping is given for what has no fields.
        ValueError: as the configuration and its parts.

    Examples:
        >>> config = with_changes(DiDiInstructConfig(), paths={"num_steps": (4,)}, reward_clip=4.0)
        >>> config.paths.num_steps, config.paths.branching
        ((4,), False)
    """
    kind, known = type(config).__name__, [each.name for each in fields(config)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in known:
            raise TypeError(f"{kind} has no field {name!r}; it has {', '.join(known) or 'none'}")
        part = getattr(config, name)
        if isinstance(value, Mapping):
            if not is_dataclass(part):
                raise TypeError(f"{name} of {kind} is {part!r} and has no fields; give a value instead of {value!r}")
            value = with_changes(part, **value)
        values[name] = value
    return replace(config, **values)  # type: ignore[type-var]
