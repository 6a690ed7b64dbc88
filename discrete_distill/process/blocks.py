"""Block diffusion: denoisers that read noisy blocks, each given the clean ones before it, and where blocks lie.

Shape suffixes: B batch, L length, N blocks, K positions of a block, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conditions import call_network, name_of
from .denoiser import LogitsOfPart


@runtime_checkable
class PairedDenoiser(Protocol):
    """A block-diffusion network that reads noisy blocks, each given the clean ones before it, in one pass.

    Attributes:
        block_length: positions in a block; None for a network that attends both ways, which has no such pass.

    Examples:
        >>> network = DiT(DiTConfig(**{**vars(shape), "block_length": 4}))
        >>> isinstance(network, PairedDenoiser), network.paired_features(x_t, data).shape
        (True, torch.Size([8, 16, 16]))
    """

    if TYPE_CHECKING:

        @property
        def block_length(self) -> int | None:
            """Positions in a block."""
            ...

    def paired_features(self, x_t: Tensor, x_0: Tensor, /, **model_kwargs: Any) -> Tensor:
        """What the head reads at the noisy tokens, ``[B, L, D]``."""
        ...

    def project(self, features: Tensor, /) -> Tensor:
        """Vocabulary logits ``[..., V]``."""
        ...


def reads_blocks(denoiser: Any) -> bool:
    """Whether it is a `PairedDenoiser` with attention by blocks.

    Raises:
        ValueError: of one in a bare DDP, which hides it.

    Examples:
        >>> reads_blocks(teacher), reads_blocks(DiT(DiTConfig(**{**vars(shape), "block_length": 4})))
        (False, True)
    """
    if isinstance(denoiser, nn.parallel.DistributedDataParallel | nn.DataParallel) and reads_blocks(denoiser.module):
        raise ValueError(
            f"a bare {type(denoiser).__name__} hides that the {name_of(denoiser.module)} reads by blocks of "
            f"{denoiser.module.block_length}, and it would be read as a whole: take replicate(network, device)"
        )
    # By name: from Python 3.12 on isinstance does not see what torch.compile and peft pass on.
    methods = (getattr(denoiser, name, None) for name in ("paired_features", "project"))
    return getattr(denoiser, "block_length", None) is not None and all(map(callable, methods))


def block_length_of(denoiser: Any) -> int | None:
    """Positions in a block of a denoiser that `reads_blocks`; None of one that does not."""
    return denoiser.block_length if reads_blocks(denoiser) else None


def paired_logits(
    denoiser: PairedDenoiser,
    x_t: Tensor,
    x_0: Tensor,
    positions: Tensor,
    *,
    model_kwargs: Mapping[str, Any] | None = None,
) -> LogitsOfPart:
    """Read noisy blocks in one pass, each given the clean blocks before it; logits a part of the positions at a time.

    Args:
        denoiser: with attention by blocks.
        x_t: int64 ``[B, L]``.
        x_0: int64 ``[B, L]``.
        positions: int64 ``[N]``, positions in the flattened ``[B * L]``.
        model_kwargs: passed to the denoiser by keyword.

    Returns:
        ``logits(part: slice) -> [n, V]``.

    Examples:
        >>> network = DiT(DiTConfig(**{**vars(shape), "block_length": 4})).eval()
        >>> positions = process.is_masked(x_t).flatten().nonzero()[:, 0]
        >>> paired_logits(network, x_t, data, positions)(slice(0, 2)).shape
        torch.Size([2, 9])
    """
    features_RD = call_network(denoiser, denoiser.paired_features, x_t, x_0, model_kwargs=model_kwargs or {}).flatten(
        0, 1
    )
    return lambda part: denoiser.project(features_RD[positions[part]])


class BlockRows:
    """The blocks of sequences as rows of their own, and back again.

    Args:
        x_0: int64 ``[B, L]``.
        attention_mask: bool ``[B, L]``, true at real tokens; blocks are counted from the first of them.
        block_length: positions in a block, ``K``; the last block of a sequence is filled up.

    Attributes:
        number: int64 ``[B, L]``, the block of each position in its sequence; -1 at padding.
        num_blocks: of the longest sequence, ``N``.
    """

    def __init__(self, x_0: Tensor, attention_mask: Tensor | None, block_length: int) -> None:
        self.block_length, (self.batch, self.length) = block_length, x_0.shape
        self.num_blocks = -(-self.length // block_length)
        here = torch.arange(self.length, device=x_0.device).expand(self.batch, -1)
        places = here
        self.number = here // block_length
        if attention_mask is not None:
            first_B1 = attention_mask.to(torch.uint8).argmax(1, keepdim=True)
            places = here + first_B1
            self.number = torch.where(attention_mask.bool(), (here - first_B1) // block_length, -1)
        self.inside, self.places = places < self.length, places % self.length

    def blocks(self, values: Tensor, filling: int | bool) -> Tensor:
        """``[B, L]`` to ``[B * N, K]``."""
        ordered = values.gather(1, self.places).masked_fill(~self.inside, filling)
        return F.pad(ordered, (0, -self.length % self.block_length), value=filling).view(-1, self.block_length)

    def rows(self, chosen: Tensor) -> Tensor:
        """Bool ``[B * N, K]`` to ``[B, L]``; false at what no block holds."""
        ordered = chosen.view(self.batch, -1)[:, : self.length] & self.inside
        return torch.zeros_like(ordered).scatter(1, self.places, ordered)
