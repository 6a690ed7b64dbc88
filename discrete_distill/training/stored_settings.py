"""Settings that a run was started with, kept in its checkpoints, so that a change is named instead of being ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..digests import weights_digest

Setting = str | int | float | bool | None


def flat_settings(value: Any, prefix: str = "", *, leave_out: tuple[str, ...] = ()) -> dict[str, Setting]:
    """Every field of a nested configuration under its dotted name, as a plain value.

    A part that stands where several classes may stand is named too: the value of its field is the name of its class. A
    network is its `weights_digest`.

    Args:
        value: dataclass, mapping, or a value.
        prefix: of the names.
        leave_out: dotted names, with the prefix, of fields or groups that are not settings of the result.

    Examples:
        >>> flat_settings({"student": {"rate": 0.1}, "seed": 0})
        {'student.rate': 0.1, 'seed': 0}
    """
    if prefix in leave_out:
        return {}
    kinds: dict[str, Setting] = {}
    if isinstance(value, Mapping):
        parts = {str(name): part for name, part in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        parts = {each.name: getattr(value, each.name) for each in fields(value)}
        stated = {each.name: getattr(each.type, "__name__", each.type) for each in fields(value)}
        found = {name: type(part).__name__ for name, part in parts.items() if is_dataclass(part)}
        kinds = {name: kind for name, kind in found.items() if kind != stated[name]}
    elif isinstance(value, Path):
        return {prefix: str(value)}
    elif isinstance(value, nn.Module):
        return {prefix: weights_digest(value)}
    else:
        return {prefix: value if isinstance(value, Setting) else repr(value)}
    settings: dict[str, Setting] = {}
    for name, part in parts.items():
        full = f"{prefix}.{name}" if prefix else name
        if full not in leave_out:
            settings |= {full: kinds[name]} if name in kinds else {}
            settings |= flat_settings(part, full, leave_out=leave_out)
    return settings


def refuse_changes(
    saved: Mapping[str, Setting], now: Mapping[str, Setting], *, where: str | Path, shown: int = 3
) -> None:
    """Compare settings with those that a run was started with.

    Raises:
        ValueError: naming the settings that differ, with both values.

    Examples:
        >>> refuse_changes({"seed": 0}, {"seed": 1}, where="run")
        Traceback (most recent call last):
        ValueError: ...
    """
    missing = object()
    names = sorted({*saved, *now})
    changed = [name for name in names if saved.get(name, missing) != now.get(name, missing)]
    if not changed:
        return
    values = [(name, saved.get(name, "absent"), now.get(name, "absent")) for name in changed[:shown]]
    some = ", ".join(f"{name} was {before} and is {after}" for name, before, after in values)
    more = f" and {len(changed) - shown} more" if len(changed) > shown else ""
    raise ValueError(
        f"{where} is of a run with other settings: {some}{more}; go on with those, or choose another folder"
    )
