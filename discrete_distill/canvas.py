"""What samplers and student paths share: the canvas that is being unmasked, its seeds, coins, and logits where they
are needed.

Shape suffixes: B batch, L length, V vocabulary, N chosen rows, M candidates.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Generator, Tensor

from .checks import check_count
from .kernels import STREAM_COIN, uniform
from .process import Denoiser, MaskedDiffusion, logits_in_parts

MAX_POSITIONS = 2**32
"""Counters of random draws have 32 bits: positions from there on would repeat the draws of the first ones."""


def time_grid(num_steps: int, *, device: torch.device, end: float = 0.0) -> Tensor:
    """``num_steps + 1`` evenly spaced times from 1 down to ``end``, fp32.

    Raises:
        TypeError: if ``num_steps`` is no integer.
        ValueError: if there is no step, or ``end`` is outside ``[0, 1)``.
    """
    check_count("num_steps", num_steps)
    if not 0.0 <= end < 1.0:
        raise ValueError(f"the grid must end in [0, 1), got {end}")
    return torch.linspace(1.0, end, num_steps + 1, device=device)


class Canvas:
    """Sequences under construction. Only mask tokens of the start, at real positions, ever move.

    Args:
        process: names the mask.
        shape: ``(B, L)`` of an unconditional sample; or give ``x_init``.
        x_init: int64 ``[B, L]``: prompt or infill tokens, and masks where tokens are wanted.
        attention_mask: bool ``[B, L]`` (or integers 0 and 1), true at real tokens; padding is never written.
        generator: source of the 64-bit seed that fixes all draws.
        device: of an unconditional sample; the generator's by default.
        writable: bool ``[B, L]``; masks elsewhere are left as they are (blocks that come later). All by default.
        first_row: number of the first sequence: a batch that is drawn in parts, each with the same generator state and
            its own ``first_row``, gets the tokens of the whole.

    Raises:
        ValueError: if neither or both of ``shape`` and ``x_init`` are given, there is no sequence or no position,
            shapes or devices do not agree, ids are negative, or ``first_row`` is out of range.
        TypeError: if ``x_init`` does not hold int64 ids, a mask is no bool tensor, or ``shape`` holds no integers.
    """

    def __init__(
        self,
        process: MaskedDiffusion,
        shape: tuple[int, int] | None,
        *,
        x_init: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        writable: Tensor | None = None,
        first_row: int = 0,
    ) -> None:
        if (shape is None) == (x_init is None):
            raise ValueError("give either shape=(batch, length) or x_init, and not both")
        self.process = process
        self.unconditional = x_init is None
        if generator is not None and not isinstance(generator, Generator):
            raise TypeError(f"generator must be a torch.Generator, got {generator!r}")
        self.largest_id = process.mask_token_id
        if x_init is None:
            place = device if device is not None else (generator.device if generator is not None else "cpu")
            x_init = torch.full(_checked_shape(shape), process.mask_token_id, dtype=torch.long, device=place)
        else:
            smallest, largest = _range_of_ids(x_init)
            if smallest < 0:
                raise ValueError(f"x_init holds the token id {smallest}; ids are 0 or more (pad with any of them)")
            self.largest_id = max(self.largest_id, largest)
            if device is not None and _differ(torch.device(device), x_init.device):
                raise ValueError(
                    f"x_init is on {x_init.device} and device is {device}; move x_init, or leave device out"
                )
        attention_mask = _checked_mask("attention_mask", attention_mask, x_init)
        writable = _checked_mask("writable", writable, x_init)
        first_row = check_count("first_row", first_row, least=0)
        batch, length = x_init.shape
        if (first_row + batch) * length > MAX_POSITIONS:
            raise ValueError(
                f"first_row = {first_row} with {batch} sequences of {length} goes beyond 2**32 positions, where random "
                "draws would repeat; draw the rest from another seed"
            )
        self.z = x_init.clone()
        self.attention_mask = attention_mask
        self.movable = process.is_masked(self.z)
        if attention_mask is not None:
            self.movable &= attention_mask
        if writable is not None:
            self.movable &= writable
        self.untouched = True
        self.log_probs = torch.zeros(self.z.shape, dtype=torch.float32, device=self.z.device)
        # A generator's own state is not philox: one draw of it names the whole trajectory.
        self.seed = torch.randint(
            2**63 - 1, (), generator=generator, device=generator.device if generator is not None else "cpu"
        ).to(self.z.device)
        self.first_row = first_row
        self.row_numbers = torch.arange(self.z.numel(), device=self.z.device) + first_row * self.z.shape[1]

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self.z.shape[0]

    def masked(self) -> Tensor:
        """Bool ``[B, L]``: positions still to be drawn."""
        return self.process.is_masked(self.z, self.movable)

    def repeated(self, copies: int) -> Canvas:
        """A canvas with ``copies`` of each sequence in its place; they share their coins, and draw their own tokens."""
        made = copy.copy(self)
        for name in ("z", "movable", "log_probs", "attention_mask"):
            value = getattr(self, name)
            setattr(made, name, value if value is None else value.repeat_interleave(copies, dim=0))
        made.row_numbers = self.row_numbers.view(self.z.shape).repeat_interleave(copies, dim=0).flatten()
        return made

    def part(self, sequences: Tensor | None) -> Canvas:
        """A canvas of some of the sequences, int64 ``[b]``, to be read; of all if None."""
        if sequences is None:
            return self
        made = copy.copy(self)
        for name in ("z", "movable", "log_probs", "attention_mask"):
            value = getattr(self, name)
            setattr(made, name, value if value is None else value[sequences])
        made.row_numbers = self.row_numbers.view(self.z.shape)[sequences].flatten()
        return made

    def coins(self, step: int, probability: Tensor) -> Tensor:
        """Bool ``[B, L]``: which positions would be revealed, with probability ``[B]`` or ``[B, L]``; they depend on
        the logits only if the probability does."""
        draw = self.uniform(step, STREAM_COIN)
        return draw < (probability if probability.dim() == 2 else probability[:, None])

    def coins_of_steps(self, first: int, probabilities: Tensor) -> Tensor:
        """Bool ``[K, B, L]``: the `coins` of ``K`` steps from ``first`` on, with probabilities ``[K]``."""
        steps = torch.arange(first, first + len(probabilities), device=self.z.device)
        draw = uniform(self.seed, row=self.row_numbers, step=steps[:, None], stream=STREAM_COIN, dtype=torch.float32)
        return (draw < probabilities[:, None]).view(-1, *self.z.shape)

    def uniform(self, step: int, stream: int) -> Tensor:
        """Uniform numbers in (0, 1), fp32 ``[B, L]``, one for every position, step and stream."""
        draw = uniform(self.seed, row=self.row_numbers, step=step, stream=stream, dtype=torch.float32)
        return draw.view_as(self.z)

    def logits(
        self, denoiser: Denoiser, rows: Tensor, t: Tensor, s: Tensor, *, sequences: Tensor | None = None, **cond: Any
    ) -> Tensor:
        """Raw logits ``[N, V]`` at flattened positions ``rows``, asking only for the sequences that hold them: those in
        ``sequences``, int64 ``[b]`` ascending, where they are known already.

        In an unconditional batch the all-mask states are equal, and one stands for all, unless ``sequences`` are given.
        """
        length = self.z.shape[1]
        if sequences is None and self.one_row_stands_for_all(t, s, cond):
            return self._ask(denoiser, self.z[:1], t[:1], rows % length, s[:1], {})
        owner = rows // length
        if sequences is None:
            needed, place = torch.unique(owner, return_inverse=True)
        else:
            needed, place = sequences, torch.searchsorted(sequences, owner)
        if self.attention_mask is not None:
            cond = {"attention_mask": self.attention_mask, **cond}
        cond = {name: take_rows(value, needed, self.batch) for name, value in cond.items()}
        compact = place * length + rows % length
        return self._ask(denoiser, self.z[needed], t[needed], compact, s[needed], cond)

    def _ask(self, denoiser: Denoiser, z: Tensor, t: Tensor, rows: Tensor, s: Tensor, cond: dict[str, Any]) -> Tensor:
        parts = logits_in_parts(denoiser, z, t, rows, s=s, cond=cond, largest_id=self.largest_id)
        return parts(slice(None))

    def one_row_stands_for_all(self, t: Tensor, s: Tensor, cond: dict[str, Any]) -> bool:
        """Whether every row is all mask, in the same step, with nothing else that could tell rows apart."""
        return self.rows_are_equal(cond) and bool(is_first_step_of_all(t, s))

    def rows_are_equal(self, cond: dict[str, Any]) -> bool:
        """Whether every row is all mask, and nothing but its times could tell it apart; known on the host."""
        return self.unconditional and self.untouched and self.attention_mask is None and not cond

    def write(self, rows: Tensor, tokens: Tensor, log_probs: Tensor) -> None:
        """Put tokens ``[N]`` and their log-probabilities at flattened positions; earlier states stay as they were.

        A token of -1 (there was nothing to draw from) leaves the mask where it is.
        """
        self.untouched = False
        tokens = torch.where(tokens < 0, self.process.mask_token_id, tokens)
        self.z = self.z.flatten().index_copy(0, rows, tokens).view_as(self.z)
        self.log_probs = self.log_probs.flatten().index_copy(0, rows, log_probs).view_as(self.log_probs)


def is_first_step_of_all(t: Tensor, s: Tensor) -> Tensor:
    """Bool ``[...]``: whether all sequences take the same step from time 1; of times ``[..., B]``."""
    return ((t >= 1.0) & (s == s[..., :1])).all(-1)


def check_rows(cond: dict[str, Any], batch: int) -> None:
    """Refuse conditions of each sequence that cannot be taken for some of the sequences, as `take_rows` does.

    Raises:
        TypeError: if one is a list or a numpy array with an entry for each sequence.
    """
    for name, value in cond.items():
        is_array = hasattr(value, "__array__") and not isinstance(value, Tensor)
        size = len(value) if isinstance(value, list) else value.shape[0] if is_array and value.ndim else None
        if size == batch:
            raise TypeError(
                f"{name} is a {type(value).__name__} with an entry for each sequence; pass a tensor, for a denoiser "
                "is asked about some sequences at a time"
            )


def take_rows(value: Any, needed: Tensor, batch: int) -> Any:
    """The value at some of the sequences, if it has one for each of the batch; itself otherwise."""
    is_per_row = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch
    return value[needed] if is_per_row else value


def _checked_shape(shape: Any) -> tuple[int, int]:
    """The shape, if it is two integers of 1 or more."""
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        raise TypeError(f"shape must be (batch, length), got {shape!r}")
    batch, length = shape
    return check_count("batch in shape", batch), check_count("length in shape", length)


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


def _checked_mask(name: str, mask: Any, x_init: Tensor) -> Tensor | None:
    """The mask as bool ``[B, L]``."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be a bool tensor [batch, length], got {got}")
    if mask.shape != x_init.shape:
        raise ValueError(f"{name} has shape {list(mask.shape)}, the sequences {list(x_init.shape)}; they must agree")
    if mask.device != x_init.device:
        raise ValueError(f"{name} is on {mask.device}, the sequences on {x_init.device}; move it there")
    if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError(f"{name} holds other numbers than 0 and 1; true marks real tokens")
    return mask.bool()


def _differ(device: torch.device, other: torch.device) -> bool:
    indices = (device.index, other.index)  # The processor has one name with an index and one without.
    return device.type != other.type or (None not in indices and indices[0] != indices[1])
