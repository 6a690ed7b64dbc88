"""Checks of plain arguments: a wrong type or value is refused before anything is computed."""

from __future__ import annotations

import math
from numbers import Integral, Real


def check_whole_number(name: str, value: object, minimum: int) -> int:
    """Return ``value`` as an int; refuse what is no integer of ``minimum`` or more.

    Raises:
        TypeError: if it is no integer; a bool, a float and a tensor are none.
        ValueError: if it is less than ``minimum``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__})")
    if int(value) < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def check_number(name: str, value: object) -> float:
    """Return ``value`` as a float; refuse what is no finite real number.

    Raises:
        TypeError: if it is no real number; a bool and a tensor are none.
        ValueError: if it is NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a real number, got {value!r} ({type(value).__name__})")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def check_flag(name: str, value: object) -> None:
    """Refuse a ``value`` that is no bool.

    Raises:
        TypeError: if it is not True or False.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, got {value!r} ({type(value).__name__})")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a ``value`` that is none of ``choices``.

    Raises:
        ValueError: if it is another.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is one of {', '.join(map(repr, choices))}, got {value!r}")
