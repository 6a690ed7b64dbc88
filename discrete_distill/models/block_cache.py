"""Keys and values of the tokens that a network has read, a slot for each.

Shape suffixes: B batch, C slots, K positions of a part, D width.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

GROWTH = 1.25


class BlockCache:
    """Keys, values and features of tokens, made by ``prefill`` and extended by ``commit`` of a `BlockDenoiser`.

    Rows may be at different places: a slot has a position in each row, counted from the first real token of the row,
    and none where the row has padding. A call of ``denoise`` writes the keys of its part behind the slots; the next
    call overwrites them, and ``commit`` keeps them. Full buffers are made anew, with room for a quarter more.

    Args:
        batch: number of rows.
        dtype: of the network's weights; another network's cache is refused.
        device: of the rows.

    Attributes:
        positions: int64 ``[B, C]``, -1 at padding, which is never read.
        ragged: whether rows may be at different places, and have padding.
        features: ``[B, C, D]``: what the head reads at each slot, before logits are moved to the token that they
            predict; None while there is no slot.

    Examples:
        >>> network = DiT(DiTConfig(**{**vars(shape), "block_length": 4})).eval()
        >>> cache = network.prefill(data[:, :8])  # A prompt of two blocks.
        >>> logits = network.denoise(torch.full((8, 4), 8), t, cache)  # The third block, masked: [8, 4, 9].
        >>> network.commit(logits[..., :8].argmax(-1), cache)  # The third block, finished.
    """

    ragged = True

    def __init__(self, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.positions = torch.empty(batch, 0, dtype=torch.long, device=device)
        self.features: Tensor | None = None
        self._buffers: list[tuple[Tensor, Tensor]] = []

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.positions.shape[0]

    @property
    def size(self) -> int:
        """Number of slots."""
        return self.positions.shape[1]

    @property
    def lengths(self) -> Tensor:
        """Position that follows the last token of each row, int64 ``[B]``."""
        if not self.size:
            return self.positions.new_zeros(self.batch)
        return self.positions.amax(1) + 1

    @property
    def nbytes(self) -> int:
        """Memory of all buffers, in bytes."""
        held = [each for pair in self._buffers for each in pair] + [self.positions]
        held += [] if self.features is None else [self.features]
        return sum(each.numel() * each.element_size() for each in held)

    def rows(self, index: Tensor) -> BlockCache:
        """Copy some rows, int64 ``[b]``, such as those that are not finished."""
        made = copy.copy(self)
        made.positions = self.positions[index]
        made.features = None if self.features is None else self.features[index]
        made._buffers = [(keys[index], values[index]) for keys, values in self._buffers]
        return made

    def put(self, index: Tensor, other: BlockCache) -> None:
        """Replace some rows, int64 ``[b]``, by those of another cache with as many slots."""
        self.positions = self.positions.index_copy(0, index, other.positions)
        if self.features is not None and other.features is not None:
            self.features = self.features.index_copy(0, index, other.features)
        for held, new in zip(self._buffers, other._buffers, strict=True):
            for mine, theirs in zip(held, new, strict=True):
                mine.narrow(-2, 0, self.size).index_copy_(0, index, theirs.narrow(-2, 0, self.size))

    def check(self, x_block: Tensor, dtype: torch.dtype) -> None:
        """Refuse a cache of other rows or of a network of another dtype.

        Raises:
            ValueError: if the number of rows or the dtype differs.
        """
        if len(x_block) != self.batch:
            raise ValueError(
                f"the cache holds {self.batch} rows and the block {len(x_block)}; take the rows of the block, "
                "cache.rows(index)"
            )
        if dtype != self.dtype:
            raise ValueError(f"the cache was made by a network of {self.dtype}, this one is {dtype}; call prefill anew")

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values ``[B, H, K, d]`` of a layer behind its slots; called by attention layers.

        Returns:
            Keys and values of all slots and of the part, ``[B, H, C + K, d]``: views, valid until the next call.
        """
        end = self.size + keys.shape[2]
        if layer_idx == len(self._buffers):  # Not the tensors themselves, which may be views of larger ones.
            self._buffers.append((keys[:, :, :0], values[:, :, :0]))
        held = self._buffers[layer_idx]
        if end > held[0].shape[2]:
            held = (self._grown(held[0], end), self._grown(held[1], end))
            self._buffers[layer_idx] = held
        for buffer, new in zip(held, (keys, values), strict=True):
            buffer[:, :, self.size : end] = new
        return held[0][:, :, :end], held[1][:, :, :end]

    def get_seq_length(self, *_: Any) -> int:
        """Number of slots, by the name that models of transformers ask for."""
        return self.size

    def keep(self, positions: Tensor, features: Tensor) -> None:
        """Make slots of the part that was written last.

        Args:
            positions: int64 ``[B, K]``, -1 at padding.
            features: ``[B, K, D]``.
        """
        self.positions = torch.cat((self.positions, positions), dim=1)
        self.features = features if self.features is None else torch.cat((self.features, features), dim=1)

    def features_at(self, positions: Tensor) -> Tensor:
        """Features ``[B, K, D]`` of the tokens at positions ``[B, K]``, which must be there."""
        assert self.features is not None
        slots = (self.positions[:, None, :] == positions[:, :, None]).to(torch.uint8).argmax(2)
        return self.features.gather(1, slots[..., None].expand(-1, -1, self.features.shape[2]))

    def _grown(self, buffer: Tensor, end: int) -> Tensor:
        batch, heads, _, width = buffer.shape
        made = buffer.new_empty(batch, heads, int(GROWTH * end), width)
        made[:, :, : self.size] = buffer[:, :, : self.size]
        return made
