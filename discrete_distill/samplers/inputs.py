"""Checks of the arguments of a sampler's call, and the rows of arguments that have one for each sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..checks import check_count
from .prompts import Frame

MAX_POSITIONS = 2**32
"""Counters of random draws have 32 bits: positions from there on would repeat the draws of the first ones."""


def start_of(
    mask_token_id: int, shape: Any, x_init: Any, device: torch.device | str | None, default: torch.device | str
) -> tuple[Tensor, int]:
    """Tokens before the first step, int64 ``[B, L]``, and the largest id among them and the mask.

    Args:
        mask_token_id: the mask.
        shape: ``(B, L)`` of an unconditional sample, ``(B, Frame)`` of one with fixed tokens around it, or None.
        x_init: int64 ``[B, L]``, or None.
        device: as the caller states it.
        default: device of an unconditional sample where the caller states none.
    """
    if (shape is None) == (x_init is None):
        raise ValueError("give either shape=(batch, length) or x_init, and not both")
    if x_init is None:
        place = default if device is None else device
        batch, frame = _checked_shape(shape)
        largest = max((mask_token_id, *frame.prefix, *frame.suffix))
        return frame.x_init(batch, mask_token_id=mask_token_id, device=place), largest
    smallest, largest = _range_of_ids(x_init)
    if smallest < 0:
        raise ValueError(f"x_init holds the token id {smallest}; ids are 0 or more (pad with any of them)")
    if device is not None and _differ(torch.device(device), x_init.device):
        raise ValueError(f"x_init is on {x_init.device} and device is {device}; move x_init, or leave device out")
    return x_init.clone(), max(mask_token_id, largest)


def checked_mask(name: str, mask: Any, tokens: Tensor) -> Tensor | None:
    """The mask as bool ``[B, L]``; None passes."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be a bool tensor [batch, length], got {got}")
    if mask.shape != tokens.shape:
        raise ValueError(f"{name} has shape {list(mask.shape)}, the sequences {list(tokens.shape)}; they must agree")
    if mask.device != tokens.device:
        raise ValueError(f"{name} is on {mask.device}, the sequences on {tokens.device}; move it there")
    if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError(f"{name} holds other numbers than 0 and 1; true marks the positions that are meant")
    return mask.bool()


def checked_first_row(first_row: Any, batch: int, length: int) -> int:
    """The number of the first sequence."""
    first_row = check_count("first_row", first_row, minimum=0)
    if (first_row + batch) * length > MAX_POSITIONS:
        raise ValueError(
            f"first_row = {first_row} with {batch} sequences of {length} goes beyond 2**32 positions, where random "
            "draws would repeat; draw the rest from another seed"
        )
    return first_row


def check_rows(model_kwargs: Mapping[str, Any], batch: int) -> None:
    """Refuse keyword arguments of each sequence that cannot be taken for some of the sequences, as `take_rows` does."""
    for name, value in model_kwargs.items():
        is_array = hasattr(value, "__array__") and not isinstance(value, Tensor)
        size = len(value) if isinstance(value, list) else value.shape[0] if is_array and value.ndim else None
        if size == batch:
            raise TypeError(
                f"{name} is a {type(value).__name__} with an entry for each sequence; pass a tensor, for a denoiser "
                "is called on some sequences at a time"
            )


def _checked_shape(shape: Any) -> tuple[int, Frame]:
    """Number of sequences and their frame, if the shape is an integer of 1 or more and another one or a frame."""
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        raise TypeError(f"shape must be (batch, length), got {shape!r}")
    batch, length = shape
    frame = length if isinstance(length, Frame) else Frame(check_count("length in shape", length))
    return check_count("batch in shape", batch), frame


def _range_of_ids(x_init: Any) -> tuple[int, int]:
    """The smallest and the largest id; one copy to the host."""
    if not isinstance(x_init, Tensor):
        raise TypeError(f"x_init must be a torch tensor, got {type(x_init).__name__}; pass torch.tensor(x_init)")
    if x_init.dtype != torch.long or x_init.dim() != 2:
        raise TypeError(f"x_init must be int64 [batch, length], got {x_init.dtype} {list(x_init.shape)}")
    if x_init.is_meta:
        raise TypeError("x_init is on the meta device and holds no ids; move it to a real one")
    if x_init.numel() == 0:
        raise ValueError(f"x_init has shape {list(x_init.shape)}; pass at least one sequence of at least one position")
    smallest, largest = torch.stack(x_init.aminmax()).tolist()
    return smallest, largest


def _differ(device: torch.device, other: torch.device) -> bool:
    indices = (device.index, other.index)  # The processor has one name with an index and one without.
    return device.type != other.type or (None not in indices and indices[0] != indices[1])
