"""ESM's token dropout where no token is visible.

ESM-2 zeroes the embeddings of masks and scales the others by ``0.88 / (share of visible tokens)``: 0 / 0 where all are
masks. Zero times any finite scale is zero, so the scale of such a row is of no consequence, and 1 is taken.
Padding is no token here; transformers before 5 counts it among the visible ones, so that padded rows answer otherwise.

Shape suffixes: B batch, L length, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

MASKED_IN_TRAINING = 0.15 * 0.8


def token_dropout_layers(model: Any) -> list[str]:
    """Names of the embeddings that have this rule, whether it is on or off."""
    if not isinstance(model, nn.Module):
        return []
    wanted = ("token_dropout", "mask_token_id", "word_embeddings")
    return [name for name, module in model.named_modules() if all(hasattr(module, each) for each in wanted)]


@contextmanager
def finite_token_dropout(
    layers: list[Any], ids_BL: Tensor, attention_mask: Tensor | None, *, zero_masks: bool = True
) -> Iterator[None]:
    """Inside, the rule is the same, and defined for rows of masks alone.

    Args:
        layers: embeddings, see `token_dropout_layers`.
        ids_BL: what the model is called with.
        attention_mask: likewise, ``[B, L]`` or None.
        zero_masks: whether embeddings of masks are zeroed; False where embeddings are given, which are scaled alone.
    """
    on = [layer for layer in layers if layer.token_dropout]
    with ExitStack() as stack:
        for layer in on:
            masked = ids_BL == layer.mask_token_id
            length = ids_BL.shape[1] if attention_mask is None else attention_mask.sum(-1)
            share = masked.sum(-1).float() / length
            share = share.masked_fill(share == 1.0, 0.0)

            def drop(_: Any, __: Any, embeddings: Tensor, masked: Tensor = masked, share: Tensor = share) -> Tensor:
                dropped = embeddings.masked_fill(masked.unsqueeze(-1), 0.0) if zero_masks else embeddings
                return (dropped * (1 - MASKED_IN_TRAINING) / (1 - share)[:, None, None]).to(embeddings.dtype)

            stack.enter_context(layer.word_embeddings.register_forward_hook(drop))
            layer.token_dropout = False
        try:
            yield
        finally:
            for layer in on:
                layer.token_dropout = True
