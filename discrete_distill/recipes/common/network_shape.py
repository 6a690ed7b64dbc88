"""Sizes of a denoiser of any kind: what memory and time of a run depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...models import DiT, DiTConfig, EmbeddingDenoiser
from ...models.lora import lora_size
from ...models.wrappers import unwrap
from ...process.conditions import name_of


@dataclass(frozen=True, kw_only=True)
class NetworkShape:
    """Sizes of a denoiser.

    Attributes:
        vocab_size: classes.
        hidden_size: width of its embeddings.
        num_layers: blocks.
        num_heads: of attention; one for every 64 units of width where it is not known.
        time_conditioning: whether it is passed the time.
        parameters: numbers that it holds.
        rank_parameters: numbers that low-rank matrices of rank 1 on its linear layers hold.
        max_length: longest sequence, in tokens; None where it is not known.
        block_length: positions in a block; None for attention both ways.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    time_conditioning: bool
    parameters: int
    rank_parameters: int
    max_length: int | None = None
    block_length: int | None = None


def network_shape(network: DiTConfig | NetworkShape | nn.Module) -> NetworkShape:
    """Sizes of a network, or of the `DiT` of a configuration without making it.

    Args:
        network: a `DiT`, a model behind `as_denoiser`, a configuration, or sizes.

    Raises:
        ValueError: if it does not state its number of classes or its blocks.
    """
    if isinstance(network, NetworkShape):
        return network
    if isinstance(network, DiTConfig):
        with torch.device("meta"):
            return network_shape(DiT(network))
    inner: Any = unwrap(network)[0]
    counts = {
        "parameters": sum(parameter.numel() for parameter in inner.parameters()),
        "rank_parameters": lora_size(inner, rank=1),
        "num_layers": len(getattr(inner, "blocks", ())),
        "block_length": getattr(inner, "block_length", None),
    }
    if isinstance(inner, DiT):
        config = inner.config
        return NetworkShape(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_heads=config.num_heads,
            time_conditioning=config.time_conditioning,
            max_length=config.max_length,
            **counts,
        )
    if inner.num_classes is None or not counts["num_layers"]:
        raise ValueError(
            f"{name_of(network)} does not state its token ids or its blocks: a recipe needs a model with "
            "get_input_embeddings() and a ModuleList of blocks"
        )
    hidden_size = inner.embedding_weight().shape[1] if isinstance(inner, EmbeddingDenoiser) else 0
    return NetworkShape(
        vocab_size=inner.num_classes,
        hidden_size=hidden_size,
        num_heads=_stated(inner, "num_attention_heads") or max(1, hidden_size // 64),
        time_conditioning=inner.time_conditioned,
        max_length=_longest(inner),
        **counts,
    )


def _stated(denoiser: nn.Module, name: str) -> int | None:
    """A whole number of the model's configuration; None where there is none."""
    found = (getattr(getattr(module, "config", None), name, None) for module in denoiser.modules())
    return next((value for value in found if isinstance(value, int)), None)


def _longest(denoiser: nn.Module) -> int | None:
    """Longest sequence by the model's configuration; RoBERTa's positions start behind the id of its padding."""
    for module in denoiser.modules():
        config = getattr(module, "config", None)
        stated = getattr(config, "max_position_embeddings", None)
        if isinstance(stated, int):
            table = getattr(getattr(module, "embeddings", None), "position_embeddings", None)
            offset = 0 if getattr(table, "padding_idx", None) is None else table.padding_idx + 1  # type: ignore[union-attr]
            if getattr(config, "model_type", None) in ("roberta", "xlm-roberta", "camembert", "esm"):
                offset = max(offset, (getattr(config, "pad_token_id", None) or 0) + 1)
            return stated - offset
    return None
