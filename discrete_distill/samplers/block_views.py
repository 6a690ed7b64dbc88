"""Denoisers of one block, which read the rest of the sequences from a cache of keys and values.

Shape suffixes: B batch, L length, b sequences of a block, K its positions, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..models import BlockCache, BlockDenoiser
from ..process.conditions import take_rows
from .block_layout import Block, BlockLayout
from .state import SamplerState


class BlockView:
    """A denoiser of tokens ``[b, K]`` of the block that was opened last.

    Samplers call a denoiser on some of the sequences at a time: ``rows``, int64 ``[b]``, says which of the block's.

    Args:
        network: with a cache.
        state: of the whole batch.
        layout: of its blocks.

    Attributes:
        commits: passes that kept a finished block.
        other_passes: passes that filled a cache, beyond the calls of the denoiser.
    """

    def __init__(self, network: BlockDenoiser, state: SamplerState, layout: BlockLayout) -> None:
        self.network, self.state, self.layout = network, state, layout
        self.project = network.project
        if hasattr(network, "projection"):
            self.projection = network.projection
        self.accepts_step = getattr(network, "accepts_step", False)
        self.time_conditioned = getattr(network, "time_conditioned", True)
        self.num_classes = getattr(network, "num_classes", None)
        self.commits = self.other_passes = 0

    def open(self, number: int, block: Block) -> None:
        """Turn to another block.

        Args:
            number: of the block in each of its sequences.
            block: where it lies.
        """
        raise NotImplementedError

    def close(self, unfinished: Tensor) -> None:
        """Leave the finished block; ``unfinished``, int64 ``[b]``, are the sequences of it that go on."""

    def features(
        self, x_block: Tensor, t: Tensor, /, *, rows: Tensor, attention_mask: Tensor, **model_kwargs: Any
    ) -> Tensor:
        """What the head reads, ``[b, K, D]``."""
        raise NotImplementedError

    def __call__(self, x_block: Tensor, t: Tensor, /, **model_kwargs: Any) -> Tensor:
        """Raw logits ``[b, K, V]``."""
        return self.project(self.features(x_block, t, **model_kwargs))

    def kwargs_of(self, rows: Tensor) -> dict[str, Any]:
        """Conditions of some sequences of the batch."""
        return take_rows(self.state.model_kwargs, rows, self.state.batch)


class ExactView(BlockView):
    """Over a network with attention by blocks: prompts and finished blocks are read once."""

    def __init__(self, network: BlockDenoiser, state: SamplerState, layout: BlockLayout) -> None:
        super().__init__(network, state, layout)
        layout.check_gaps()
        prompts = layout.prompts()
        self.rows = prompts.rows
        tokens, kwargs = prompts.of(state.tokens), self.kwargs_of(prompts.rows)
        self.cache = network.prefill(tokens, attention_mask=prompts.real, **kwargs)
        self.other_passes = int(self.cache.size > 0)

    def open(self, number: int, block: Block) -> None:
        self._keep(block.rows)
        self.block = block
        self.starts = self.layout.before[block.rows] + number * self.layout.block_length

    def close(self, unfinished: Tensor) -> None:
        if not len(unfinished):
            return
        self._keep(unfinished)
        stay = torch.isin(self.block.rows, unfinished)
        tokens, real = self.block.of(self.state.tokens)[stay], self.block.real[stay]
        self.network.commit(tokens, self.cache, attention_mask=real, **self.kwargs_of(unfinished))
        self.commits += 1

    def features(
        self, x_block: Tensor, t: Tensor, /, *, rows: Tensor, attention_mask: Tensor, **model_kwargs: Any
    ) -> Tensor:
        cache = _some(self.cache, rows)
        return self.network.block_features(
            x_block, t, cache, starts=self.starts[rows], attention_mask=attention_mask, **model_kwargs
        )

    def _keep(self, rows: Tensor) -> None:
        """Let the cache of sequences that are finished go."""
        if len(rows) < len(self.rows):
            self.cache = self.cache.rows(torch.isin(self.rows, rows).nonzero().squeeze(1))
            self.rows = rows


class RefreshedView(BlockView):
    """Over a network that attends both ways: Fast-dLLM's caches (arXiv 2505.22618).

    The first step of a block reads the whole sequences and keeps all keys and values; the other steps read the block
    and all tokens behind it anew ("prefix"), or the block alone ("dual"). The first step of a sequence is the one that
    reveals its first token there: a network that is passed the time reads each sequence at the time of its own.

    Args:
        network: with a cache.
        state: of the whole batch.
        layout: of its blocks.
        suffix: read the tokens behind the block anew.
    """

    def __init__(self, network: BlockDenoiser, state: SamplerState, layout: BlockLayout, *, suffix: bool) -> None:
        super().__init__(network, state, layout)
        self.suffix, self.timed = suffix, self.time_conditioned or self.accepts_step
        if not getattr(network, "kind_of_cache", BlockCache).ragged:
            layout.check_together()

    def open(self, number: int, block: Block) -> None:
        self.block, self.cache = block, None
        self.unread = torch.ones_like(block.rows, dtype=torch.bool)
        self.starts = self.layout.before[block.rows] + number * self.layout.block_length
        self.part = block
        if self.suffix:
            begin = int((self.layout.first_real[block.rows] + self.starts).min())
            width = max(self.state.tokens.shape[1] - begin, block.positions.shape[1])
            self.part = self.layout.block(number, block.rows, width)

    cache: BlockCache | None

    def features(
        self, x_block: Tensor, t: Tensor, /, *, rows: Tensor, attention_mask: Tensor, **model_kwargs: Any
    ) -> Tensor:
        unread = self.unread[rows]
        if self.cache is None or (self.timed and bool(unread.any())):
            if self.timed:
                s = {"s": model_kwargs["s"][unread]} if "s" in model_kwargs else {}
                self.cache = self._filled(self.cache, rows[unread], t[unread], **s)
            else:
                all_rows = torch.arange(len(self.block.rows), device=rows.device)
                self.cache = self._filled(None, all_rows, t[:1].expand(len(all_rows)))
            if bool(unread.all()):
                places = self.starts[:, None] + torch.arange(self.block.positions.shape[1], device=rows.device)
                return self.cache.features_at((places - int(self.network.shifted)).clamp(min=0))[rows]
            self.other_passes += 1
        width, starts = x_block.shape[1], self.starts[rows]
        if self.suffix:
            behind = self.part.of(self.state.tokens)[rows, width:]
            x_block, attention_mask = torch.cat((x_block, behind), dim=1), self.part.real[rows]
        features = self.network.block_features(
            x_block, t, _some(self.cache, rows), starts=starts, attention_mask=attention_mask, **model_kwargs
        )
        return features[:, :width]

    def _filled(self, cache: BlockCache | None, rows: Tensor, t: Tensor, **step: Tensor) -> BlockCache:
        """The cache of the block, with whole sequences of it, int64 ``[b]``, read at their times."""
        numbers, real = self.block.rows[rows], self.state.attention_mask
        kwargs = {**self.kwargs_of(numbers), **step}
        if real is not None:
            kwargs["attention_mask"] = real[numbers]
        new = self.network.prefill(self.state.tokens[numbers], t, **kwargs)
        self.unread = self.unread.index_fill(0, rows, False)
        if len(rows) == len(self.block.rows):
            return new
        if cache is None:  # The first of them stands for those that are read later.
            places = torch.arange(len(rows), device=rows.device)
            return new.rows(torch.zeros_like(self.block.rows).index_copy(0, rows, places))
        cache.put(rows, new)
        return cache


def _some(cache: BlockCache, rows: Tensor) -> BlockCache:
    return cache if len(rows) == cache.batch else cache.rows(rows)
