"""Keys and values as Fast-dLLM's code of LLaDA and of Dream passes them: a list with a pair for each layer.

Shape suffixes: B batch, C slots, K positions of a part, d width of keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .block_cache import BlockCache


class ListedCache(BlockCache):
    """A cache that the model returns and is given back, ``[B, C, d]`` or ``[B, heads, C, d]`` in each layer.

    The keys are those before rotary positions, and the model counts positions from the first slot. Slot and position
    are therefore one number, the same in all rows, and there is no padding.
    """

    ragged = False

    def span(self, positions: Tensor) -> tuple[int, int]:
        """First position of a part, and the position behind its last; columns of padding at its end are left out.

        Args:
            positions: int64 ``[B, K]``, -1 at padding.

        Raises:
            ValueError: if the rows differ.
        """
        used = int((positions >= 0).any(0).sum())
        first = int(positions[0, 0])
        expected = torch.arange(first, first + used, device=positions.device)
        if first < 0 or not torch.equal(positions[:, :used], expected.expand(self.batch, -1)):
            row = next(each for each in positions.tolist() if first < 0 or each[:used] != expected.tolist())
            raise ValueError(
                f"the model counts positions from the first key of its cache, so that no row may have padding, and "
                f"blocks of all rows begin at one position; got positions {row[:8]}, and {first}, ... in the first "
                "row: give rows of one length with prompts of one length, or one row at a time"
            )
        return first, first + used

    @contextmanager
    def lent(self, first: int, last: int) -> Iterator[dict[str, Any]]:
        """Keywords of a call that reads the positions from ``first`` to ``last - 1``.

        Such a call writes the keys of its part into the tensors that it is given. What stood there is put back.
        """
        if last >= self.size:
            before = [tuple(each[..., :first, :] for each in pair) for pair in self._buffers]
            yield {"past_key_values": before or None, "use_cache": True}
            return
        held = [(each, each[..., first:last, :].clone()) for pair in self._buffers for each in pair]
        replaced = torch.zeros(1, self.size, dtype=torch.bool, device=self.positions.device)
        replaced[:, first:last] = True
        try:
            yield {"past_key_values": list(self._buffers), "use_cache": True, "replace_position": replaced}
        finally:
            for each, part in held:
                each[..., first:last, :] = part

    def take(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Hold what a call without a cache returned."""
        self._buffers = [(keys, values) for keys, values in pairs]
