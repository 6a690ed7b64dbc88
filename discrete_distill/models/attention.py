"""Attention of the library's networks: PyTorch's, over a dense mask, or over the tiles of a mask that are read.

Shape suffixes: B batch, H heads, Q tokens that read, C tokens that are read, d width of a head, T tiles, S of a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 128
FEWEST_TOKENS = 4 * TILE  # below, there are hardly any tiles to leave out
NARROWEST_HEAD = 16  # that FlexAttention compiles for


class PairMask(NamedTuple):
    """Which tokens read which, by two rules: those of a group read one another, and a token reads what is early enough.

    Attributes:
        query_group: int64 ``[B, Q]``.
        key_group: int64 ``[B, C]``; read by the queries of the same group.
        query_limit: int64 ``[B, Q]``.
        key_time: int64 ``[B, C]``; read by the queries whose limit is larger.
    """

    query_group: Tensor
    key_group: Tensor
    query_limit: Tensor
    key_time: Tensor

    def dense(self) -> Tensor:
        """Bool ``[B, 1, Q, C]``."""
        queries, keys = (self.query_group, self.query_limit), (self.key_group, self.key_time)
        return reads(*(each[:, None, :, None] for each in queries), *(each[:, None, None, :] for each in keys))

    def tiled(self) -> Any:
        """A ``BlockMask`` for FlexAttention. Tiles are found from the extremes of their queries and keys: all that are
        read are among them, and few others."""
        from torch.nn.attention.flex_attention import BlockMask

        def read(b: Tensor, h: Tensor, q: Tensor, c: Tensor) -> Tensor:
            return reads(self.query_group[b, q], self.query_limit[b, q], self.key_group[b, c], self.key_time[b, c])

        (group_q, limit_q), (group_k, time_k) = (
            [tile_extremes(each) for each in pair]
            for pair in ((self.query_group, self.query_limit), (self.key_group, self.key_time))
        )
        rows, columns = (slice(None), slice(None), None), (slice(None), None)
        meet = (group_q.low[rows] <= group_k.high[columns]) & (group_k.low[columns] <= group_q.high[rows])
        some = (meet | (time_k.low[columns] < limit_q.high[rows]))[:, None]
        every = (time_k.high[columns] < limit_q.low[rows])[:, None]
        every[:, :, self.query_group.shape[1] // TILE :] = False  # tiles that reach beyond the tokens
        every[..., self.key_group.shape[1] // TILE :] = False
        return BlockMask.from_kv_blocks(
            *listed(some & ~every), *listed(every), BLOCK_SIZE=TILE, mask_mod=read,
            seq_lengths=(self.query_group.shape[1], self.key_group.shape[1]),
        )  # fmt: skip


def reads(query_group: Tensor, query_limit: Tensor, key_group: Tensor, key_time: Tensor) -> Tensor:
    """The rule of a `PairMask`, of values that broadcast."""
    return (query_group == key_group) | (key_time < query_limit)


class Extremes(NamedTuple):
    """Least and largest values ``[B, T]`` of tiles."""

    low: Tensor
    high: Tensor


def tile_extremes(values: Tensor) -> Extremes:
    """Of ``[B, L]``; a last tile that is not full repeats the last value."""
    missing = -values.shape[1] % TILE
    tiles_BTS = torch.cat((values, values[:, -1:].expand(-1, missing)), dim=1).unflatten(1, (-1, TILE))
    return Extremes(tiles_BTS.amin(2), tiles_BTS.amax(2))


def listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """How many tiles of each row are true, int32 ``[B, 1, T]``, and the indices of these first, ``[B, 1, T, T]``."""
    order = tiles.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32), order.to(torch.int32)


def attend(q_BHQd: Tensor, k_BHCd: Tensor, v_BHCd: Tensor, mask: Any) -> Tensor:
    """Attention ``[B, H, Q, d]``.

    Args:
        q_BHQd: queries.
        k_BHCd: keys.
        v_BHCd: values.
        mask: bool or additive, broadcast to ``[B, H, Q, C]``; a ``BlockMask`` of `PairMask.tiled`; None reads all.
    """
    if mask is None or isinstance(mask, Tensor):
        return F.scaled_dot_product_attention(q_BHQd, k_BHCd, v_BHCd, attn_mask=mask)
    return flex()(q_BHQd, k_BHCd, v_BHCd, block_mask=mask)


@cache
def flex() -> Callable[..., Tensor]:
    """FlexAttention, compiled once."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    return compiled


def pays_in_tiles(tokens: Tensor, head_width: int) -> bool:
    """Whether a pass over tokens ``[B, Q]`` is one that FlexAttention takes and that is long enough for it."""
    return tokens.is_cuda and tokens.shape[1] >= FEWEST_TOKENS and head_width >= NARROWEST_HEAD
