"""Checks of single arguments, in one place, so that every bad number is refused with its name and its value."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Generator, Tensor

NO_MASK = (
    "no sequence holds the mask at a real position, so that there is nothing to draw; does x_init hold the process's "
    "mask_token_id?"
)


def check_count(name: str, value: Any, *, minimum: int = 1) -> int:
    """Return ``value`` as an int; refuse what is not an integer of ``minimum`` or more. A bool is not an integer here.

    Raises:
        TypeError: for another type; ``2.0`` is not an integer either.
        ValueError: for an integer below ``minimum``.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__})")
    if number < minimum:
        raise ValueError(f"{name} must be {minimum} or more, got {value!r}")
    return number


def check_counts(name: str, values: Any) -> tuple[int, ...]:
    """Return a sequence of integers of 1 or more; refuse what is none, or empty.

    Raises:
        TypeError: for another type.
        ValueError: for no integer, or one below 1.
    """
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"{name} is a sequence of integers, such as (2, 4), got {values!r}")
    if not values:
        raise ValueError(f"{name} needs one or more integers, got {tuple(values)!r}")
    return tuple(check_count(name, value) for value in values)


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    exclusive_minimum: float = -math.inf,
    maximum: float = math.inf,
    exclusive_maximum: float = math.inf,
    finite: bool = True,
) -> float:
    """Return ``value`` as a float; refuse what is not a real number in an interval.

    Args:
        name: of the argument.
        value: int or float; NaN is never allowed.
        minimum: smallest value allowed.
        exclusive_minimum: the value must be greater.
        maximum: largest value allowed.
        exclusive_maximum: the value must be smaller.
        finite: whether an infinite value is refused.

    Raises:
        TypeError: for another type.
        ValueError: for a number outside the interval.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a real number, got {value!r} ({type(value).__name__})")
    number = float(value)
    low, high = exclusive_minimum, exclusive_maximum
    inside = minimum <= number <= maximum
    inside &= (number > low or low == -math.inf) and (number < high or high == math.inf)
    if not inside or (finite and not math.isfinite(number)):
        bounds = [f"{minimum:g} or more"] * (minimum > -math.inf) + [f"above {low:g}"] * (low > -math.inf)
        bounds += [f"{maximum:g} or less"] * (maximum < math.inf) + [f"below {high:g}"] * (high < math.inf)
        bounds += ["finite"] * finite
        raise ValueError(f"{name} must be {' and '.join(bounds) or 'a number'}, got {value!r}")
    return number


def check_all_counts(values: Any, *names: str, minimum: int = 1, flag: str = "") -> None:
    """`check_count` of several attributes of one object.

    Args:
        values: has the attributes.
        names: of the attributes.
        minimum: smallest value allowed.
        flag: how the group is called on the command line (``"--judge"``), where the user gave ``--judge.batch-size``.
    """
    for name in names:
        shown = f"{flag}.{name.replace('_', '-')}" if flag else name
        check_count(shown, getattr(values, name), minimum=minimum)


def check_floats(name: str, value: Any) -> None:
    """Refuse what is no tensor of floating-point numbers.

    Raises:
        TypeError: if it is not.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of floating-point numbers, got {found}")


def check_tokens(name: str, value: Any) -> None:
    """Refuse what is no tensor of token ids.

    Raises:
        TypeError: if it does not hold int64 numbers.
    """
    if not isinstance(value, Tensor) or value.dtype != torch.long:
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be clean tokens, int64 [B, L], got {found}; convert them by .long()")


def check_mask(name: str, mask: Any, shape: Sequence[int], *, of: str = "tokens") -> None:
    """Refuse what is no bool tensor of one shape; None, no mask, passes. A mask of another shape would be repeated over
    rows or positions that it does not know.

    Args:
        name: of the argument.
        mask: bool tensor, or None.
        shape: that it must have.
        of: what has that shape, for the message.

    Raises:
        TypeError: if it does not hold booleans.
        ValueError: if it has another shape.
    """
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be bool, got {found}; convert it by .bool()")
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {list(mask.shape)}, the {of} {list(shape)}; they must agree")


def check_same_shape(**tensors: Tensor) -> None:
    """Refuse tensors of which one would be repeated along another; each is given by the name of its argument.

    Raises:
        TypeError: if one holds no floating-point numbers.
        ValueError: if their shapes differ.
    """
    for name, tensor in tensors.items():
        check_floats(name, tensor)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if len({tuple(shape) for shape in shapes.values()}) > 1:
        stated = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"tensors of one shape are needed, got {stated}")


def check_per_row(name: str, value: Any, rows: int) -> None:
    """Refuse what is no real number for each row, ``[B]``.

    Raises:
        TypeError: if it is no tensor of floating-point numbers.
        ValueError: if it has another shape.
    """
    check_floats(name, value)
    if value.shape != (rows,):
        raise ValueError(f"{name} must be one value for each row, [{rows}], got shape {list(value.shape)}")


def check_generator(generator: Any) -> None:
    """Refuse a source of randomness that is none, such as a seed.

    Raises:
        TypeError: if it is neither a `torch.Generator` nor None.
    """
    if generator is not None and not isinstance(generator, Generator):
        raise TypeError(f"generator must be a torch.Generator, such as Generator().manual_seed(0), got {generator!r}")


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
