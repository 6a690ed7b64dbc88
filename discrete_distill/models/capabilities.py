"""What a network can offer beside its call, as protocols, and the error where one is missing.

`FeatureDenoiser` (``process``) is the first of these protocols. A denoiser that is passed the end of its step has a
true attribute ``accepts_step``.

Shape suffixes: B batch, L length, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from ..process import FeatureDenoiser
from ..process.conditions import name_of
from .block_cache import BlockCache
from .wrappers import unwrap


@runtime_checkable
class EmbeddingDenoiser(Protocol):
    """A network, denoiser or `RatioNetwork`, whose input embeddings can be replaced.

    Its call, and those of its methods that read tokens (``features``, ``hidden_states``), take ``inputs_embeds``,
    floating ``[B, L, D]``, in the place of ``embed(x_t)``. The tokens ``x_t`` are passed as well, since a model may
    compute positions from them.

    Examples:
        >>> denoiser = as_denoiser(bert)
        >>> embedded = denoiser.embed(x_t)  # [8, 16, 16]
        >>> torch.allclose(denoiser(x_t, t, inputs_embeds=embedded), denoiser(x_t, t), atol=1e-5)
        True
    """

    def embed(self, x_t: Tensor, /) -> Tensor:
        """Embeddings ``[B, L, D]`` of ids ``[B, L]``."""
        ...

    def embedding_weight(self) -> Tensor:
        """Embeddings ``[V, D]`` of all ids, with gradient where they are trained."""
        ...

    def __call__(self, x_t: Tensor, t: Tensor, /, **model_kwargs: Any) -> Tensor: ...


@runtime_checkable
class HiddenStatesDenoiser(Protocol):
    """A denoiser whose blocks can be read and trained by themselves.

    Attributes:
        blocks: the blocks in order.

    Examples:
        >>> denoiser = as_denoiser(bert)
        >>> len(denoiser.blocks), denoiser.hidden_states(x_t, t, 1).shape  # Behind the second block.
        (2, torch.Size([8, 16, 16]))
    """

    if TYPE_CHECKING:  # not a member that isinstance looks up: from Python 3.12 on it does not see a module's modules

        @property
        def blocks(self) -> Sequence[nn.Module] | nn.ModuleList:
            """The blocks in order."""
            ...

    def hidden_states(self, x_t: Tensor, t: Tensor, layer: int, /, **model_kwargs: Any) -> Tensor:
        """Output ``[B, L, D]`` of block ``layer``, counted from 0; not moved where the logits are shifted."""
        ...


@runtime_checkable
class BlockDenoiser(Protocol):
    """A denoiser that reads a part of its rows against cached keys and values; `BlockReading` has the methods.

    ``prefill`` reads whole rows, ``block_features`` and ``denoise`` read a part of each and keep nothing, ``commit``
    reads a finished block and keeps its keys. With attention by blocks the cache is exact; with attention both ways it
    is an approximation, for the keys of the other tokens are those of the last ``prefill``.

    Attributes:
        block_length: positions in a block; None for attention both ways.
        shifted: features at a position predict the token behind it.

    Examples:
        >>> isinstance(teacher, BlockDenoiser)
        True
        >>> cache = teacher.prefill(data[:, :8])
        >>> block = torch.full((8, 4), 8)  # The next four positions, masked.
        >>> teacher.denoise(block, t, cache).shape
        torch.Size([8, 4, 9])
    """

    if TYPE_CHECKING:

        @property
        def block_length(self) -> int | None:
            """Positions in a block."""
            ...

        @property
        def shifted(self) -> bool:
            """Whether features predict the token behind them."""
            ...

    def prefill(self, x: Tensor, t: Tensor | None = None, /, **model_kwargs: Any) -> BlockCache:
        """Keys, values and features of all tokens ``[B, L]``."""
        ...

    def block_features(self, x_block: Tensor, t: Tensor, cache: BlockCache, /, **model_kwargs: Any) -> Tensor:
        """What the head reads at a part, ``[B, K, D]``, in the place of the tokens that it predicts."""
        ...

    def denoise(self, x_block: Tensor, t: Tensor, cache: BlockCache, /, **model_kwargs: Any) -> Tensor:
        """Raw logits ``[B, K, V]`` of a part."""
        ...

    def commit(self, x_block: Tensor, cache: BlockCache, /, **model_kwargs: Any) -> None:
        """Keep the keys of a finished block."""
        ...

    def project(self, features: Tensor, /) -> Tensor:
        """Vocabulary logits ``[..., V]``."""
        ...


OFFERS: dict[Any, tuple[str, str]] = {
    FeatureDenoiser: (
        "features(x_t, t) and project(features)",
        "name the module that returns the logits, as_denoiser(model, head=...)",
    ),
    EmbeddingDenoiser: (
        "embed(x_t), embedding_weight() and calls with inputs_embeds=",
        "name the table of input embeddings, as_denoiser(model, embedding=...)",
    ),
    HiddenStatesDenoiser: (
        "hidden_states(x_t, t, layer) and blocks",
        "name the list of blocks, as_denoiser(model, blocks=...)",
    ),
    BlockDenoiser: (
        "prefill(x, t), block_features and denoise(x_block, t, cache), commit(x_block, cache) and project(features)",
        'take a DiT, as_denoiser(model, attention="full") of a model that takes past_key_values and position_ids, '
        "Dream, or LLaDA by the code of Fast-dLLM (LLaDA's own refuses a cache)",
    ),
}


def require(network: Any, capability: Any, *, needed_by: str) -> Any:
    """Return the network, or the one inside DDP, ``torch.compile`` or peft that has the capability.

    Args:
        network: any denoiser or ratio network.
        capability: one of the protocols.
        needed_by: the part that uses it, for the message.

    Raises:
        TypeError: if it does not offer the capability; names the methods, and the argument that supplies them.
    """
    for each in (network, unwrap(network)[0]):
        if isinstance(each, capability):
            return each
    methods, remedy = OFFERS[capability]
    raise TypeError(
        f"{needed_by} needs a {capability.__name__}, which offers {methods}; {name_of(network)} does not: {remedy}, or "
        "define the methods in a module of your own"
    )


def forgo(network: nn.Module, *methods: str) -> None:
    """Declare methods of the network's class absent from this network, so that its protocols do not hold.

    Args:
        network: whose class is replaced by a subclass of the same name.
        *methods: names.
    """
    if methods:
        kind: Any = type(network)
        network.__class__ = _lacking(kind, methods)


@cache
def _lacking(kind: Any, methods: tuple[str, ...]) -> Any:
    # A method that is None in the class is absent for protocols, by Python's convention.
    absent: dict[str, Any] = dict.fromkeys(methods)
    return type(kind.__name__, (kind,), {**absent, "__module__": kind.__module__, "__doc__": kind.__doc__})
