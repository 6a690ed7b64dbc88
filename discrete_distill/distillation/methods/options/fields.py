"""Checks of fields by their annotations."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ....checks import check_choice, check_flag


def check_fields(config: Any) -> None:
    """Refuse fields of a dataclass that hold another part, flag or name than their annotations allow.

    Args:
        config: a dataclass. Fields of other types are left alone, and so is a class whose annotations name what its
            module does not hold (a class made inside a function).

    Raises:
        TypeError: if a part is of another class, or a flag is no bool.
        ValueError: if a name is not one of a ``Literal``.
    """
    try:
        hints = get_type_hints(type(config))
    except NameError:
        return
    for each in fields(config):
        name, value, hint = each.name, getattr(config, each.name), hints[each.name]
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if hint is bool:
            check_flag(name, value)
        elif get_origin(hint) is Literal:
            check_choice(name, value, get_args(hint))
        elif all(kind is NoneType or is_dataclass(kind) for kind in kinds) and not isinstance(value, kinds):
            allowed = " or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)
            raise TypeError(f"{name} must be a {allowed}, got {value!r}")
