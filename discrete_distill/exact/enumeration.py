"""All sequences of a small language, and the states of the masked process over them, in a fixed order.

K words, length L. A **distribution** is a tensor of probabilities of shape ``[K] * L``: ``distribution[x_1, ...,
x_L]``. A **state distribution** has shape ``[K + 1] * L`` and is indexed by token ids, mask included. Both say their
own K and L.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_count, check_floats

MAX_ENTRIES = 2**25
"""The maximum number of sequences, states or transitions that is enumerated: 256 MiB in fp64."""


def check_enumerable(base: int, length: int, what: str) -> None:
    """Raise ValueError if ``base ** length`` exceeds `MAX_ENTRIES`, or if the size makes no sense."""
    check_count("vocab_size", base)
    check_count("length", length)
    if base < 2:
        raise ValueError(f"need at least one word and length 1, got {base - 1} words and length {length}")
    if length * math.log(base) > math.log(MAX_ENTRIES) + 1e-9:  # Before the power is computed.
        raise ValueError(
            f"{what}: {base}^{length} entries are more than the {MAX_ENTRIES:,} that are "
            "enumerated; use a shorter length or fewer words, or work with samples: MarkovChain.sample and "
            "MarkovChain.log_prob have no such limit, and MarkovChain.window_distribution gives exact short n-grams"
        )


def enumerate_sequences(vocab_size: int, length: int) -> Tensor:
    """Every sequence of ``length`` words, the last position fastest: int64 ``[K ** length, length]``.

    Row ``n`` is the sequence whose probability is ``distribution.flatten()[n]``.

    Raises:
        ValueError: if there are more than `MAX_ENTRIES` of them.

    Examples:
        >>> enumerate_sequences(vocab_size=2, length=2).tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    check_count("vocab_size", vocab_size)
    if vocab_size == 1 and check_count("length", length):
        return torch.zeros(1, length, dtype=torch.long)
    check_enumerable(vocab_size, length, "all sequences")
    number = torch.arange(vocab_size**length)
    return number[:, None] // place_values(vocab_size, length) % vocab_size


def place_values(size: int, length: int, device: torch.device | str = "cpu") -> Tensor:
    """``size^(L-1), ..., size, 1``: a row of ids times these, summed, is its place in a flattened table."""
    return size ** torch.arange(length - 1, -1, -1, device=device)


def look_up(table: Tensor, x_t: Tensor) -> Tensor:
    """``table[x_1, ..., x_L]`` for every row.

    The table is a distribution at words, or a state distribution or `log_ratio` at token ids.

    Args:
        table: one axis for each position.
        x_t: int64 ``[B, L]``.

    Returns:
        ``[B]``.

    Raises:
        ValueError: if the length or an id does not fit the table.

    Examples:
        >>> look_up(torch.tensor([[0.4, 0.1], [0.2, 0.3]]), torch.tensor([[0, 1], [1, 1]]))
        tensor([0.1000, 0.3000])
    """
    length, size = check_table(table)
    if x_t.dim() != 2 or x_t.shape[1] != length:
        raise ValueError(f"the table is over length {length}, the sequences have shape {list(x_t.shape)}")
    if x_t.numel() and not 0 <= int(x_t.min()) <= int(x_t.max()) < size:
        raise ValueError(
            f"ids must lie in 0..{size - 1} to look them up in this table, "
            f"got values from {int(x_t.min())} to {int(x_t.max())}"
        )
    return table[tuple(x_t.unbind(1))]


def check_probabilities(name: str, values: Tensor) -> None:
    """Refuse entries that are no probabilities. Their sum is not looked at: parts of a distribution are distributions
    of fewer sequences.

    Raises:
        TypeError: if they are no floating-point numbers.
        ValueError: if one is negative or not finite.
    """
    check_floats(name, values)
    wrong = ~((values >= 0) & values.isfinite())
    if bool(wrong.any()):
        raise ValueError(f"{name} holds {float(values[wrong][0])}, which is no probability")


def check_distribution(distribution: Tensor) -> tuple[int, int]:
    """``(length, size)`` of a distribution of shape ``[size] * length``.

    Raises:
        TypeError: if it does not hold floating-point numbers.
        ValueError: if the axes differ in size, or an entry is negative or not finite.
    """
    check_probabilities("distribution", distribution)
    return check_table(distribution)


def check_table(table: Tensor) -> tuple[int, int]:
    """``(length, size)`` of a table with one entry for each sequence, ``[size] * length``.

    Raises:
        ValueError: if the axes differ in size.
    """
    if table.dim() < 1 or len(set(table.shape)) != 1:
        raise ValueError(
            f"a distribution has one axis for each position, all of one size; got shape {list(table.shape)}. "
            "A flat one over K words is reshaped with distribution.reshape([K] * length)"
        )
    return table.dim(), table.shape[0]


class MaskPattern(NamedTuple):
    """The states in which exactly the positions ``masked`` hold the mask, written K, after the words.

    Attributes:
        masked: masked positions, ascending.
        visible: the others, ascending.
        num_states: K to the number of visible positions.
        row_start: where this pattern's rows begin; state-major, masked position minor.
    """

    masked: tuple[int, ...]
    visible: tuple[int, ...]
    num_states: int
    row_start: int

    @property
    def num_rows(self) -> int:
        """One row for each masked position of each state."""
        return self.num_states * len(self.masked)


class MaskedStates(NamedTuple):
    """All states with at least one mask, grouped by pattern.

    Attributes:
        patterns: in the order of the rows.
        states: int64 ``[S, L]``, mask written K.
        flat: int64 ``[S]``, place of each state in a flattened ``[K + 1] * L`` distribution with the mask last.
        row_of: int64 ``[(K + 1) ** L, L]``: row of a masked position of a state, -1 where it is visible.
    """

    patterns: tuple[MaskPattern, ...]
    states: Tensor
    flat: Tensor
    row_of: Tensor

    @property
    def num_rows(self) -> int:
        """``L (K + 1) ** (L - 1)``."""
        return sum(pattern.num_rows for pattern in self.patterns)


@lru_cache(maxsize=8)
def masked_states(vocab_size: int, length: int) -> MaskedStates:
    """The states that a denoiser can be evaluated on, in the order that `sampler_distribution` and its tables share."""
    check_enumerable(vocab_size + 1, length, "all noisy states")
    every_state = enumerate_sequences(vocab_size + 1, length)
    hidden = every_state == vocab_size
    pattern_number = (hidden.long() << torch.arange(length)).sum(1)
    flat = pattern_number.argsort(stable=True)
    flat = flat[pattern_number[flat] > 0]
    states = every_state[flat]
    row_of = torch.full(every_state.shape, -1)
    hidden_rows = hidden[flat]
    numbers = torch.full(hidden_rows.shape, -1)
    numbers[hidden_rows] = torch.arange(int(hidden_rows.sum()))
    row_of[flat] = numbers
    return MaskedStates(_patterns(vocab_size, length), states, flat, row_of)


def _patterns(vocab_size: int, length: int) -> tuple[MaskPattern, ...]:
    patterns, row_start = [], 0
    for number in range(1, 2**length):
        masked = tuple(i for i in range(length) if number >> i & 1)
        visible = tuple(i for i in range(length) if not number >> i & 1)
        pattern = MaskPattern(masked, visible, vocab_size ** len(visible), row_start)
        patterns.append(pattern)
        row_start += pattern.num_rows
    return tuple(patterns)


def with_mask_at(state_distribution: Tensor, mask_token_id: int) -> Tensor:
    """From mask-last order to token ids: every axis of ``[K + 1] * L`` with the mask moved to its id."""
    size = state_distribution.shape[0]
    order = [*range(mask_token_id), size - 1, *range(mask_token_id, size - 1)]
    return _reorder_axes(state_distribution, order)


def with_mask_last(state_distribution: Tensor, mask_token_id: int) -> Tensor:
    """Inverse of `with_mask_at`."""
    order = [i for i in range(state_distribution.shape[0]) if i != mask_token_id] + [mask_token_id]
    return _reorder_axes(state_distribution, order)


def _reorder_axes(table: Tensor, order: list[int]) -> Tensor:
    if order == list(range(len(order))):
        return table
    index = torch.tensor(order, device=table.device)
    for axis in range(table.dim()):
        table = table.index_select(axis, index)
    return table
