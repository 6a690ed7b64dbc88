"""The orders in which masks can be revealed whatever a network says of them."""

from __future__ import annotations

from typing import Literal, get_args

from ..checks import check_choice

UnmaskingOrder = Literal["random", "strided"]
"""``"random"``, the reverse process: each mask at a time of its own; or ``"strided"``: masks of one step lie apart."""


def check_unmasking_order(order: str) -> None:
    """Raise ValueError unless the order is known."""
    check_choice("order", order, get_args(UnmaskingOrder))
