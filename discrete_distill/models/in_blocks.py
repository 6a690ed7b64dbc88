"""A block-diffusion network as a denoiser of all blocks at once, each given the clean blocks before it.

Shape suffixes: B batch, L length, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..process.blocks import reads_blocks
from .capabilities import forgo
from .denoiser_view import DenoiserView


class InBlocks(DenoiserView):
    """A view of a `PairedDenoiser` that predicts every block of ``x_t`` given the blocks of clean tokens before it.

    In one pass over ``[x_t | clean]`` (BD3-LM, arXiv 2503.09573). The blocks of a state are independent given the clean
    tokens, so that a path, a bound or a log-ratio of all of them is the sum of those of the blocks, each after data.

    Args:
        denoiser: a network that reads by blocks. It is not passed the time of the state, nor the end of its step.

    Raises:
        ValueError: if it attends both ways.

    Examples:
        >>> network = DiT(DiTConfig(**{**vars(shape), "block_length": 4})).eval()
        >>> InBlocks(network)(x_t, torch.ones(8), clean=data).shape
        torch.Size([8, 16, 9])
    """

    takes_blocks = True

    def __init__(self, denoiser: Any) -> None:
        if not reads_blocks(denoiser):
            raise ValueError(f"a {type(denoiser).__name__} does not read by blocks: it has no block_length")
        super().__init__(denoiser)
        forgo(self, "embed", "embedding_weight", "hidden_states")

    @property
    def accepts_step(self) -> bool:
        """False."""
        return False

    @property
    def time_conditioned(self) -> bool:
        """False."""
        return False

    def features(self, x_t: Tensor, t: Tensor, *, clean: Tensor, **model_kwargs: Any) -> Tensor:  # type: ignore[override]
        """What the head reads at the noisy tokens, ``[B, L, D]``.

        Args:
            x_t: int64 ``[B, L]``.
            t: not read.
            clean: int64 ``[B, L]``; of each block, those before it are read.
            **model_kwargs: of the network's call.
        """
        return self.denoiser.paired_features(x_t, clean, **model_kwargs)

    def forward(self, x_t: Tensor, t: Tensor, *, clean: Tensor, **model_kwargs: Any) -> Tensor:  # type: ignore[override]
        """Raw logits ``[B, L, V]``; arguments as in `features`."""
        return self.project(self.features(x_t, t, clean=clean, **model_kwargs))
