"""Reading a part of the tokens against cached keys and values: what the networks with a cache share.

Shape suffixes: B batch, L length, K positions of a block, C slots of the cache, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..process.sequences import real_tokens
from .attention_masks import noisy_and_clean, readable, row_positions
from .block_cache import BlockCache


class BlockReading:
    """The methods of a `BlockDenoiser`, over one pass that its subclass defines (`read_part`).

    Attributes:
        block_length: positions in a block of a network in which a token reads its own block and all earlier ones; None
            for attention both ways. Blocks are counted from the first real token of each row.
        shifted: features at a position predict the token behind it.
        kind_of_cache: what `prefill` makes.
    """

    block_length: int | None
    shifted: bool
    kind_of_cache: type[BlockCache] = BlockCache

    def read_part(
        self,
        x: Tensor,
        t: Tensor,
        cache: BlockCache | None,
        positions: Tensor,
        mask: Any,
        model_kwargs: dict[str, Any],
    ) -> Tensor:
        """Features ``[B, K, D]`` of tokens ``[B, K]``, whose keys go through ``cache.update``, if there is a cache.

        Args:
            x: int64 ``[B, K]``.
            t: ``[B]``.
            cache: of the rows.
            positions: int64 ``[B, K]``, 0 at padding.
            mask: bool ``[B, 1, K or 1, C + K]``, true where a token is read; None if all are; or what `PairMask.tiled`
                returns, if the network asks for it.
            model_kwargs: of the network's call.
        """
        raise NotImplementedError

    def weights_dtype(self) -> torch.dtype:
        """Of the network's weights."""
        raise NotImplementedError

    def project(self, features: Tensor) -> Tensor:
        """Vocabulary logits ``[..., V]`` of features ``[..., D]``."""
        raise NotImplementedError

    def pays_in_tiles(self, tokens: Tensor) -> bool:
        """Whether a pass over tokens ``[B, K]`` is to be given the tiles of its mask."""
        return False

    def check_length(self, length: int) -> None:
        """Raise ValueError if whole rows are longer than the network takes."""

    def paired_features(
        self, x_t: Tensor, x_0: Tensor, *, attention_mask: Tensor | None = None, **model_kwargs: Any
    ) -> Tensor:
        """Features ``[B, L, D]`` of noisy blocks, each given the clean blocks before it, in the place of the tokens
        that they predict: one pass over ``[x_t | x_0]`` (BD3-LM, arXiv 2503.09573), with gradients.

        Args:
            x_t: int64 ``[B, L]``.
            x_0: int64 ``[B, L]``, the clean tokens.
            attention_mask: bool ``[B, L]``, true at real tokens.
            **model_kwargs: of the network's call.

        Raises:
            ValueError: if the network attends both ways, or a shape differs.
        """
        block_length, length = self.block_length, x_0.shape[1]
        if block_length is None:
            raise ValueError(f"a {type(self).__name__} without block_length attends both ways; it has no noisy blocks")
        if x_t.shape != x_0.shape:
            raise ValueError(f"x_t has shape {list(x_t.shape)} and x_0 {list(x_0.shape)}; they must agree")
        self.check_length(length)
        positions = row_positions(_real(attention_mask, x_0))
        t, both = torch.zeros(len(x_0), device=x_0.device), torch.cat((x_t, x_0), dim=1)
        mask: Any = noisy_and_clean(positions, block_length)
        mask = mask.tiled() if self.pays_in_tiles(both) else mask.dense()
        features = self.read_part(both, t, None, positions.clamp(min=0).repeat(1, 2), mask, model_kwargs)
        noisy, clean = features.split(length, dim=1)
        if not self.shifted:
            return noisy
        before = torch.where((positions % block_length == 0)[:, 1:, None], clean[:, :-1], noisy[:, :-1])
        moved = torch.cat((noisy[:, :1], before), dim=1)
        # The first real token has no token before it and keeps its own.
        return torch.where((positions == 0)[..., None], noisy, moved)

    @torch.no_grad()
    def prefill(
        self, x: Tensor, t: Tensor | None = None, *, attention_mask: Tensor | None = None, **model_kwargs: Any
    ) -> BlockCache:
        """Read whole rows and keep the keys and values of all their tokens.

        Args:
            x: int64 ``[B, L]``; whole blocks if the network reads by blocks. Without any token there is no pass.
            t: ``[B]``; 0, clean tokens, by default.
            attention_mask: bool ``[B, L]``, true at real tokens; on the left or on the right of padding.
            **model_kwargs: of the network's call.
        """
        self.check_length(x.shape[1])
        cache = self.kind_of_cache(len(x), self.weights_dtype(), x.device)
        if x.shape[1]:
            positions = row_positions(_real(attention_mask, x))
            all_read = attention_mask is None and self.block_length is None
            self._keep(x, t, cache, positions, model_kwargs, all_read=all_read)
        return cache

    @torch.no_grad()
    def block_features(
        self,
        x_block: Tensor,
        t: Tensor,
        cache: BlockCache,
        *,
        starts: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Tensor:
        """What the head reads, ``[B, K, D]``; arguments as in `denoise`."""
        starts, positions = self._places(x_block, cache, starts, attention_mask)
        features = self._read(x_block, t, cache, positions, model_kwargs)
        if not self.shifted:
            return features
        first = features[:, :1]
        if cache.size:
            before = cache.features_at((starts - 1).clamp(min=0)[:, None])
            first = torch.where((starts > 0)[:, None, None], before, first)
        return torch.cat((first, features[:, :-1]), dim=1)

    def denoise(
        self,
        x_block: Tensor,
        t: Tensor,
        cache: BlockCache,
        *,
        starts: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Tensor:
        """Raw logits ``[B, K, V]`` of a part of each row; nothing is kept.

        The keys of the part stand in the place of those that the cache holds for the same positions. Where logits are
        shifted, the first token of the part is predicted by the pass that filled the cache.

        Args:
            x_block: int64 ``[B, K]``.
            t: ``[B]``.
            cache: of `prefill`.
            starts: int64 ``[B]``, position of the first token of the part in its row; behind the cache by default.
            attention_mask: bool ``[B, K]``, true at real tokens.
            **model_kwargs: of the network's call.

        Raises:
            ValueError: if the cache is of other rows or another dtype, or the part is longer than the blocks of the
                network.
        """
        return self.project(
            self.block_features(x_block, t, cache, starts=starts, attention_mask=attention_mask, **model_kwargs)
        )

    @torch.no_grad()
    def commit(
        self, x_block: Tensor, cache: BlockCache, *, attention_mask: Tensor | None = None, **model_kwargs: Any
    ) -> None:
        """Read a finished block and keep its keys and values; one forward pass.

        Args:
            x_block: int64 ``[B, K]``.
            cache: changed in its place.
            attention_mask: bool ``[B, K]``, true at real tokens.
            **model_kwargs: of the network's call.

        Raises:
            ValueError: as `denoise`; or if the network attends both ways, so that finished blocks have no keys that
                stay.
        """
        if self.block_length is None:
            raise ValueError(
                f"a {type(self).__name__} without block_length attends both ways, so that the keys of a finished block "
                "change with every later token; call prefill on the whole rows instead"
            )
        _, positions = self._places(x_block, cache, None, attention_mask)
        self._keep(x_block, None, cache, positions, model_kwargs)

    def _places(
        self, x_block: Tensor, cache: BlockCache, starts: Tensor | None, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Position of the first token ``[B]``, and of all tokens ``[B, K]``, -1 at padding."""
        cache.check(x_block, self.weights_dtype())
        if self.block_length is not None and x_block.shape[1] > self.block_length:
            raise ValueError(
                f"a block of {x_block.shape[1]} tokens is longer than the {self.block_length} of the network; give one "
                "block at a time"
            )
        starts = cache.lengths if starts is None else starts
        places_K = torch.arange(x_block.shape[1], device=x_block.device)
        return starts, torch.where(_real(attention_mask, x_block), starts[:, None] + places_K, -1)

    def _keep(
        self,
        x: Tensor,
        t: Tensor | None,
        cache: BlockCache,
        positions: Tensor,
        model_kwargs: dict[str, Any],
        *,
        all_read: bool = False,
    ) -> None:
        t = torch.zeros(len(x), device=x.device) if t is None else t
        cache.keep(positions, self._read(x, t, cache, positions, model_kwargs, all_read=all_read))

    def _read(
        self,
        x: Tensor,
        t: Tensor,
        cache: BlockCache,
        positions: Tensor,
        model_kwargs: dict[str, Any],
        *,
        all_read: bool = False,
    ) -> Tensor:
        if all_read:
            return self.read_part(x, t, cache, positions, None, model_kwargs)
        slots = cache.positions
        if cache.size:
            replaced = (slots[:, :, None] == positions[:, None, :]).any(2)
            slots = slots.masked_fill(replaced, -1)
        mask = readable(positions, torch.cat((slots, positions), dim=1), self.block_length)
        return self.read_part(x, t, cache, positions.clamp(min=0), mask, model_kwargs)


def _real(attention_mask: Tensor | None, x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool) if attention_mask is None else real_tokens(attention_mask, x.shape)
