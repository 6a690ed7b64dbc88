"""A denoiser that calls another one and has its capabilities.

Shape suffixes: B batch, L length, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch import Tensor, nn

from ..process import FeatureDenoiser
from ..process.blocks import reads_blocks
from .capabilities import EmbeddingDenoiser, HiddenStatesDenoiser, forgo


class DenoiserView(nn.Module):
    """The base of denoisers that change what another one reads (`inputs`) or returns (`project`).

    Args:
        denoiser: the other one; a function or a network.

    Raises:
        ValueError: if it reads by blocks, which a view hides that is not made for it.

    Attributes:
        takes_blocks: whether the view is made for networks that read by blocks.
    """

    takes_blocks: ClassVar[bool] = False

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        if reads_blocks(denoiser) and not self.takes_blocks:
            raise ValueError(
                f"a {type(self).__name__} around the {type(denoiser).__name__} would hide that it reads by blocks of "
                f"{denoiser.block_length}, and it would be read as a whole: leave the {type(self).__name__} out"
            )
        self.denoiser = denoiser
        absent: list[str] = []
        for capability, methods in (
            (FeatureDenoiser, ("features",)),  # `project` stays: a view of logits maps logits by it
            (EmbeddingDenoiser, ("embed", "embedding_weight")),
            (HiddenStatesDenoiser, ("hidden_states",)),
        ):
            absent += () if self.takes_blocks or isinstance(denoiser, capability) else methods
        forgo(self, *absent)

    @property
    def accepts_step(self) -> bool:
        """Whether the network is passed the end of its step."""
        return getattr(self.denoiser, "accepts_step", False)

    @property
    def time_conditioned(self) -> bool:
        """Whether its answer depends on ``t`` or ``s``."""
        return getattr(self.denoiser, "time_conditioned", True)

    @property
    def num_classes(self) -> int | None:
        """Size of the vocabulary, where it is known."""
        return getattr(self.denoiser, "num_classes", None)

    @property
    def blocks(self) -> Any:
        """The blocks in order."""
        return self.denoiser.blocks

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Enable the denoiser's own, as transformers' Trainer calls it."""
        cast(Any, self.denoiser).gradient_checkpointing_enable(**options)

    def inputs(self, x_t: Tensor, t: Tensor, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments of the denoiser's call."""
        return model_kwargs

    def forward(self, x_t: Tensor, t: Tensor, **model_kwargs: Any) -> Tensor:
        """Raw logits ``[B, L, V]``."""
        return self.denoiser(x_t, t, **self.inputs(x_t, t, model_kwargs))

    def features(self, x_t: Tensor, t: Tensor, **model_kwargs: Any) -> Tensor:
        """What the head reads, ``[B, L, D]``."""
        return self.denoiser.features(x_t, t, **self.inputs(x_t, t, model_kwargs))

    def project(self, features: Tensor) -> Tensor:
        """Vocabulary logits ``[..., V]`` of features ``[..., D]``."""
        return self.denoiser.project(features)

    def embed(self, x_t: Tensor) -> Tensor:
        """Input embeddings ``[B, L, D]`` of ids ``[B, L]``."""
        return self.denoiser.embed(x_t)

    def embedding_weight(self) -> Tensor:
        """Input embeddings ``[V, D]`` of all ids."""
        return self.denoiser.embedding_weight()

    def hidden_states(self, x_t: Tensor, t: Tensor, layer: int, **model_kwargs: Any) -> Tensor:
        """Output ``[B, L, D]`` of block ``layer``."""
        return self.denoiser.hidden_states(x_t, t, layer, **self.inputs(x_t, t, model_kwargs))
