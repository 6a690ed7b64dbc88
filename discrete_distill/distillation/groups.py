"""Rows of a group that are equal, so that one of them stands for all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..process.conditions import has_rows


def first_of_each(values: Tensor | None, copies: int) -> Tensor | None:
    """One row for each group of ``copies`` equal consecutive ones."""
    if values is None or copies == 1:
        return values
    first = values[::copies]
    if not torch.equal(values, first.repeat_interleave(copies, dim=0)):
        raise ValueError("the rows of a group share their path: x_init and attention_mask must be equal within groups")
    return first


def first_of_each_kwarg(model_kwargs: Mapping[str, Any] | None, batch: int, copies: int) -> Mapping[str, Any] | None:
    """Keyword arguments of a network with one row for each group, where they have rows.

    Raises:
        ValueError: if rows of a group differ.
    """
    if not isinstance(model_kwargs, Mapping):
        return model_kwargs
    return {
        name: first_of_each(value, copies) if has_rows(value, batch) else value for name, value in model_kwargs.items()
    }
