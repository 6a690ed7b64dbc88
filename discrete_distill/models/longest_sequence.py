"""How many tokens an external model has positions for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

POSITION_TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe")


def longest_sequence(model: Any) -> int | None:
    """Longest sequence of a model with a table of position embeddings, by the size of the table.

    Args:
        model: any callable.

    Returns:
        Number of tokens; None where there is no such table, as with rotary positions, and of a function. RoBERTa's
        positions start behind the id of its padding, OPT's and BART's behind an offset.

    Examples:
        >>> longest_sequence(bert) == bert.config.max_position_embeddings
        True
        >>> longest_sequence(teacher) is None  # Its positions are rotary.
        True
    """
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        if name.rpartition(".")[2] in POSITION_TABLES and isinstance(module, nn.Embedding):
            behind_padding = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - int(getattr(module, "offset", behind_padding))
    return None


def refuse_longer(x_t: Tensor, longest: int | None, keywords: Mapping[str, Any], model: Any) -> None:
    """Refuse sequences that are longer than `longest_sequence`, unless positions of the caller's own are passed.

    Raises:
        ValueError: if they are.
    """
    if longest is not None and x_t.shape[1] > longest and "position_ids" not in keywords:
        raise ValueError(
            f"a sequence of {x_t.shape[1]} tokens is longer than the {longest} that a {type(model).__name__} has "
            "positions for; cut it, or take a model with more positions"
        )
