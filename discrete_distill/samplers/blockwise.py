"""Block-wise semi-autoregressive sampling over any sampler, with or without a cache of keys and values."""

from __future__ import annotations

from collections.abc import Generator as Stream
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor

from ..checks import check_choice, check_count
from ..models.capabilities import BlockDenoiser, require
from ..models.wrappers import unwrap
from ..process import Denoiser
from .block_layout import Align, Block, BlockLayout, part_of, take_over, with_room
from .block_views import BlockView, ExactView, RefreshedView
from .call import Sampler, SamplerCall
from .options import SamplerOptions
from .output import SamplerOutput
from .prompts import Frame
from .state import SamplerState
from .trajectory import Recorder

Cache = Literal["exact", "prefix", "dual"]


class FinishedBlock(NamedTuple):
    """A block of some sequences, as `BlockwiseSampler.stream` yields it.

    Attributes:
        rows: which sequences, int64 ``[b]``.
        positions: int64 ``[b, K]``, where the tokens lie in the batch.
        tokens: int64 ``[b, K]``.
        real: bool ``[b, K]``, false behind the end of a sequence, and at padding.

    Examples:
        >>> blocks = BlockwiseSampler(FirstHittingSampler(process), block_length=4).stream(teacher, (1, 8))
        >>> [block.positions[0].tolist() for block in blocks]
        [[0, 1, 2, 3], [4, 5, 6, 7]]
    """

    rows: Tensor
    positions: Tensor
    tokens: Tensor
    real: Tensor


@dataclass(frozen=True)
class BlockwiseSampler(Sampler):
    """Finishes one block of positions after another, from left to right, each with ``sampler``.

    LLaDA's semi-autoregressive sampling (arXiv 2502.09992): each block runs through all steps of the sampler, and is
    passed the times of its own grid. The blocks of a sequence are its own, wherever those of other sequences lie. With
    ``ConfidenceSampler(process, num_steps=steps // num_blocks, greedy=True)`` the tokens are those of LLaDA's
    ``generate`` at temperature 0. Guidance by a prompt is guidance by what was given, not by finished blocks.

    Without a cache the denoiser is any, and sees the whole sequences in every step, later blocks as masks. With
    ``cache="exact"`` a network with attention by blocks (`BlockDenoiser`) reads prompts and finished blocks once, and
    draws the same tokens. With "prefix" or "dual" a network that attends both ways reads the whole sequences in the
    first step of a block; in its other steps it reads the block and what is behind it ("prefix"), or the block alone
    ("dual"), and keeps the keys and values of all other tokens: Fast-dLLM's approximations (arXiv 2505.22618).

    Args:
        sampler: any sampler of this package.
        block_length: positions in a block; the last one may be shorter.
        align: where the first block of a sequence begins: "prompt", at its first mask; or "start", at its first real
            token, as in the training of networks with attention by blocks.
        cache: see above.
        end_token_id: a sequence whose finished block holds it takes no part in later ones; its remaining generated
            positions are filled with this token, with log-probability 0.
        max_new_tokens: masks that are put behind each prompt of ``x_init``.

    Raises:
        TypeError: if ``sampler`` is none, or a number no integer; on a call, if the denoiser has no cache.
        ValueError: if a block is empty, a choice is unknown, the sampler may leave masks, the end token is the mask,
            or a cache does not go with the alignment or the sampler; on a call, if the denoiser was trained for other
            blocks or for another cache.

    Examples:
        >>> sampler = BlockwiseSampler(ConfidenceSampler(process, num_steps=2, greedy=True), block_length=4)
        >>> sampler(teacher, (2, 16), generator=generator).nfe  # Four blocks of two steps each.
        8
        >>> sampler = BlockwiseSampler(ConfidenceSampler(process, threshold=0.9), block_length=4, cache="dual")
        >>> sampler(teacher, (2, 16), generator=generator).tokens_per_forward  # No token is as certain as that.
        1.0
    """

    sampler: SamplerOptions
    _: KW_ONLY
    block_length: int
    align: Align = "prompt"
    cache: Cache | None = None
    end_token_id: int | None = None
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, SamplerOptions):
            raise TypeError(f"blocks are drawn by a sampler of this package, got {type(self.sampler).__name__}")
        check_count("block_length", self.block_length)
        check_choice("align", self.align, ("prompt", "start"))
        if getattr(self.sampler, "noise_removal", "sample") == "none":
            raise ValueError('a block must be finished before the next begins; take another noise_removal than "none"')
        if self.max_new_tokens is not None:
            check_count("max_new_tokens", self.max_new_tokens)
        if self.end_token_id is not None:
            check_count("end_token_id", self.end_token_id, minimum=0)
            if self.end_token_id == self.sampler.process.mask_token_id:
                raise ValueError(
                    f"end_token_id = {self.end_token_id} is the mask, which is never drawn; give another id"
                )
        if self.cache is not None:
            self._check_cache()

    def _check_cache(self) -> None:
        check_choice("cache", self.cache, ("exact", "prefix", "dual"))
        if self.cache == "exact" and self.align != "start":
            raise ValueError(
                f'cache="exact" takes the blocks of the network, counted from the first real token, and align is '
                f'{self.align!r}: pass align="start"'
            )
        if self.sampler.cfg_scale != 1.0:
            raise ValueError(
                f"cfg_scale = {self.sampler.cfg_scale} needs passes without the condition, which the cache of a "
                "conditional pass does not serve: leave it at 1, or pass cache=None"
            )
        if self.sampler.reads_whole_sequences:
            raise ValueError(
                f"a {type(self.sampler).__name__} has another network, which reads whole sequences, and cache = "
                f"{self.cache!r} shows it a block at a time: pass cache=None"
            )

    def draw(self, call: SamplerCall) -> SamplerOutput:
        run = _Run(self, call)
        for _ in run:
            pass
        return run.output()

    @torch.no_grad()
    def stream(
        self,
        denoiser: Denoiser,
        shape: tuple[int, int | Frame] | None = None,
        *,
        x_init: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_mask: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        first_row: int = 0,
    ) -> Stream[FinishedBlock, None, SamplerOutput]:
        """Draw sequences as a call does, and yield each block when it is finished.

        The arguments are those of a call; the generator returns what a call returns (``yield from``).

        Examples:
            >>> sampler = BlockwiseSampler(FirstHittingSampler(process), block_length=8)
            >>> [block.real[0].sum().item() for block in sampler.stream(teacher, (1, 12), generator=generator)]
            [8, 4]
        """
        inputs = {
            "shape": shape, "x_init": x_init, "attention_mask": attention_mask, "generation_mask": generation_mask,
            "model_kwargs": model_kwargs, "generator": generator, "device": device, "first_row": first_row,
        }  # fmt: skip
        run = _Run(self, SamplerCall(denoiser, inputs))
        yield from run
        return run.output()

    def view(self, state: SamplerState, layout: BlockLayout) -> BlockView | None:
        """The denoiser of a block, or None without a cache.

        Raises:
            TypeError: if the denoiser has no cache.
            ValueError: if it was trained for other blocks, or for another cache.
        """
        if self.cache is None:
            return None
        network: BlockDenoiser = require(state.denoiser, BlockDenoiser, needed_by=f"cache={self.cache!r}")
        trained, name = network.block_length, type(network).__name__
        if self.cache != "exact":
            if trained is not None:
                raise ValueError(
                    f"cache={self.cache!r} approximates attention both ways, and the {name} reads by blocks of "
                    f'{trained}: pass cache="exact", align="start"'
                )
            return RefreshedView(network, state, layout, suffix=self.cache == "prefix")
        if trained is None:
            raise ValueError(
                f'cache="exact" needs attention by blocks, and the {name} attends both ways: pass cache="prefix" or '
                '"dual"'
            )
        if trained != self.block_length:
            raise ValueError(
                f"block_length is {self.block_length} and the {name} was trained with blocks of {trained}: pass "
                f"block_length={trained}"
            )
        return ExactView(network, state, layout)


def in_blocks_of(denoiser: Denoiser, sampler: Sampler) -> Sampler:
    """The sampler as the denoiser reads: around a network that reads by blocks, one block after another, on its cache
    where it has one and the sampler can take it: guidance, and another network of the sampler, read whole sequences.

    Args:
        denoiser: that will be sampled.
        sampler: of whole sequences; its steps are then those of each block. Another one, such as a `BlockwiseSampler`,
            stays as it is.

    Examples:
        >>> network = DiT(DiTConfig(**{**vars(shape), "block_length": 4})).eval()
        >>> sampler = AncestralSampler(process, num_steps=2)
        >>> in_blocks_of(network, sampler).cache, in_blocks_of(teacher, sampler) is sampler
        ('exact', True)
    """
    network = unwrap(denoiser)[0]
    block_length = getattr(network, "block_length", None)
    if block_length is None or not isinstance(sampler, SamplerOptions):
        return sampler
    whole = sampler.cfg_scale != 1.0 or sampler.reads_whole_sequences
    cache: Cache | None = "exact" if isinstance(network, BlockDenoiser) and not whole else None
    return BlockwiseSampler(sampler, block_length=block_length, align="start", cache=cache)


class _Run:
    """One call: an iterator over finished blocks, then what the call returns."""

    def __init__(self, options: BlockwiseSampler, call: SamplerCall) -> None:
        self.options, self.call = options, call
        if options.max_new_tokens is not None:
            room = with_room(call.inputs, options.max_new_tokens, options.sampler.process.mask_token_id)
            self.call = call = replace(call, inputs=room)
        self.state = options.sampler.begin(call)
        self.layout = BlockLayout(self.state, options.block_length, options.align)
        self.view = options.view(self.state, self.layout)
        self.recorder = Recorder(self.state, return_history=call.return_history, callback=call.callback)
        self.num_tokens = self.state.generation_mask.sum(1)

    def __iter__(self) -> Iterator[FinishedBlock]:
        layout, count = self.layout, self.layout.count
        number, rows = 0, count.nonzero().squeeze(1)
        while len(rows):
            block = layout.block(number, rows)
            inside = torch.zeros_like(self.state.generation_mask)
            inside[rows] = (layout.number == number)[rows]
            inside &= self.state.generation_mask
            if self.view is not None:
                self.view.open(number, block)
            if bool(inside.any()):
                self._fill(number, block, inside)
            ended = self._ended(block, inside)
            yield FinishedBlock(*block[:2], block.of(self.state.tokens), block.real)
            number, rows = number + 1, rows[(count[rows] > number + 1) & ~ended]
            if self.view is not None:
                self.view.close(rows)

    def output(self) -> SamplerOutput:
        """What the call returns."""
        out = replace(self.state.finish(self.recorder.history), num_tokens=self.num_tokens)
        if self.view is not None:
            out.commits = self.view.commits
            out.network_evaluations += self.view.commits + self.view.other_passes
        return out

    def _fill(self, number: int, block: Block, inside: Tensor) -> None:
        """Draw the generated positions of a block."""
        state, whole = self.state, self.view is None
        block = self.layout.all_positions() if whole else block
        denoiser, conditions = state.denoiser, state.model_kwargs
        if self.view is not None:
            rows = torch.arange(len(block.rows), device=block.rows.device)
            denoiser, conditions = self.view, {**self.view.kwargs_of(block.rows), "rows": rows}
        part = part_of(state, block, inside, denoiser, conditions)
        # Blocks of one step share their counters, so that each block has a seed of its own.
        part.seed = state.seed + number
        if whole:
            part.attention_mask, part.one_state = state.attention_mask, state.one_state
        recorder = _PartRecorder(self.recorder, state, block, part, progress=self.options.sampler.progress)
        self.options.sampler.fill(part, recorder)
        recorder.close()
        take_over(state, block, part)
        state.nfe, state.other_calls = state.nfe + part.nfe, state.other_calls + part.other_calls
        bad = block.write(torch.zeros_like(inside), part.faults.positions)
        state.faults = state.faults.with_positions(bad)
        bad_rows = torch.zeros_like(inside[:, 0]).index_copy(0, block.rows, part.faults.scores)
        state.faults = state.faults.with_scores(bad_rows)

    def _ended(self, block: Block, inside: Tensor) -> Tensor:
        """Bool ``[b]``: sequences that drew the end token; what they have behind it is filled in."""
        end, state = self.options.end_token_id, self.state
        if end is None:
            return torch.zeros_like(block.rows, dtype=torch.bool)
        ends = inside & (state.tokens == end)
        behind = (ends.cumsum(1) > 0) & state.generation_mask
        first = behind & ends & (ends.cumsum(1) == 1)
        behind = behind & ~first
        state.tokens = torch.where(behind, end, state.tokens)
        state.log_probs = torch.where(behind, 0.0, state.log_probs)
        if self.recorder.history is not None:
            self.recorder.history[-1] = state.tokens
        self.num_tokens = self.num_tokens - behind.sum(1)
        return ends.any(1)[block.rows]


class _PartRecorder(Recorder):
    """Notes the whole batch after each step of a block, where somebody wants to see it."""

    def __init__(self, whole: Recorder, state: SamplerState, block: Block, part: SamplerState, *, progress: bool):
        super().__init__(part, return_history=False, callback=None, progress=progress)
        self.whole, self.batch, self.block = whole, state, block

    def after_step(self) -> None:
        super().after_step()
        if self.whole.history is not None or self.whole.callback is not None:
            take_over(self.batch, self.block, self.state)
            self.whole.after_step()
