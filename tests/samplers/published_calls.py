"""Tiny networks that are called, and pass their keys and values, as published code does: Dream's own, with a cache
whose ``update`` is given turned keys; LLaDA and Dream in Fast-dLLM's code, with lists of keys before rotary positions.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from fast_dllm import MASK, V, turned
from torch import Tensor, nn

WIDTH, HEADS = 16, 2


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 24, bias=False), nn.Linear(24, WIDTH, bias=False)

    def mix(self, h: Tensor, attended: Tensor) -> Tensor:
        h = h + self.o(attended)
        return h + self.down(F.silu(self.up(F.rms_norm(h, (WIDTH,)))))


class Published(nn.Module):
    """Layers between a table and a head, at the names of LLaDA or of Dream; subclasses have the call."""

    kind = "llada"

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type=self.kind)
        table, layers, head = nn.Embedding(V, WIDTH), nn.ModuleList(Layer() for _ in range(2)), nn.Linear(WIDTH, V)
        if self.kind == "llada":
            self.model = nn.Module()
            self.model.transformer = nn.ModuleDict({"wte": table, "blocks": layers, "ff_out": head})
        else:
            self.model, self.lm_head = nn.ModuleDict({"embed_tokens": table, "layers": layers}), head
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.7, generator=generator)
            table.weight[MASK] *= 0.1
            head.bias.zero_()
        self.eval()

    @property
    def parts(self) -> tuple[Any, Any, Any]:
        if self.kind == "Dream":
            return self.model["embed_tokens"], self.model["layers"], self.lm_head
        return tuple(self.model.transformer[name] for name in ("wte", "blocks", "ff_out"))

    def get_input_embeddings(self) -> Any:
        return self.parts[0]


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def at(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions ``[B, K]`` by complex numbers."""
    half = x.shape[-1] // 2
    angle = (positions[..., None].float() * 10_000.0 ** (-torch.arange(half) / half))[:, None]
    as_complex = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((as_complex.real, as_complex.imag), dim=-1)


class Dream(Published):
    """By Dream's own code."""

    kind = "Dream"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | str | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        num_logits_to_keep: int = 0,
    ) -> Any:
        table, layers, head = self.parts
        before = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = torch.arange(before, before + input_ids.shape[1])[None]
        if isinstance(attention_mask, Tensor):
            assert attention_mask.dtype == torch.bool
            assert attention_mask.shape == (*input_ids.shape[:1], 1, input_ids.shape[1], before + input_ids.shape[1])
        h = table(input_ids)
        for number, layer in enumerate(layers):
            read = F.rms_norm(h, (WIDTH,))
            q, k, v = heads(layer.q(read)), heads(layer.k(read)), heads(layer.v(read))
            q, k = at(q, position_ids), at(k, position_ids)
            if past_key_values is not None:
                k, v = past_key_values.update(k, v, number, {"cache_position": None})
            mask = attention_mask if isinstance(attention_mask, Tensor) else None
            h = layer.mix(h, F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        return SimpleNamespace(logits=head(F.rms_norm(h, (WIDTH,))[:, -num_logits_to_keep:]))


class ForgetfulDream(Dream):
    """It takes a cache, and reads nothing of it."""

    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None,
        use_cache: bool = False,
    ) -> Any:  # fmt: skip
        if isinstance(attention_mask, Tensor):
            attention_mask = attention_mask[..., -input_ids.shape[1] :]
        return super().forward(input_ids, attention_mask, position_ids)


class UnturnedDream(Dream):
    """Its positions are counted from the number of keys, whatever it is passed."""

    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None,
        use_cache: bool = False,
    ) -> Any:  # fmt: skip
        return super().forward(input_ids, attention_mask, None, past_key_values)


class RefusingDream(Dream):
    """It names a cache, and asserts that there is none."""

    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None,
        use_cache: bool = False,
    ) -> Any:  # fmt: skip
        assert past_key_values is None
        return super().forward(input_ids, attention_mask, position_ids)


class Listed(Published):
    """What LLaDA's and Dream's calls in Fast-dLLM's code share: keys are turned by their index in the list."""

    def run(self, input_ids: Tensor, past: Any, replaced: Tensor | None, mask: Tensor | None = None) -> Any:
        table, layers, head = self.parts
        h, kept, length = table(input_ids), [], input_ids.shape[1]
        for number, layer in enumerate(layers):
            read = F.rms_norm(h, (WIDTH,))
            q, k, v = heads(layer.q(read)), self.laid_out(layer.k(read)), self.laid_out(layer.v(read))
            end = length
            if past is not None and replaced is not None:
                index = replaced.nonzero(as_tuple=True)[1]
                for held, new in zip(past[number], (k, v), strict=True):
                    held[..., index, :] = new
                (k, v), end = past[number], int(index.max()) + 1
            elif past is not None:
                k, v = (torch.cat(both, dim=-2) for both in zip(past[number], (k, v), strict=True))
                end = k.shape[-2]
            kept.append((k, v))
            places = torch.arange(k.shape[-2])[None]
            q, k = at(q, places[:, end - length : end]), at(self.by_heads(k), places)
            out = F.scaled_dot_product_attention(q, k, self.by_heads(v), attn_mask=mask)
            h = layer.mix(h, out.transpose(1, 2).flatten(2))
        return SimpleNamespace(logits=head(F.rms_norm(h, (WIDTH,))), past_key_values=kept)


class ListedLLaDA(Listed):
    kind = "llada"
    laid_out, by_heads = staticmethod(heads), staticmethod(lambda x: x)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        replace_position: Tensor | None = None,
    ) -> Any:
        mask = None if attention_mask is None else attention_mask[:, None, None].bool()
        return self.run(input_ids, past_key_values, replace_position, mask)


class ListedDream(Listed):
    kind = "Dream"
    laid_out, by_heads = staticmethod(lambda x: x), staticmethod(heads)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        num_logits_to_keep: int = 0,
        dual_cache: bool | None = False,
        replace_position: Tensor | None = None,
    ) -> Any:
        assert bool(dual_cache) == (replace_position is not None)
        return self.run(input_ids, past_key_values, replace_position, attention_mask)


class OwnLLaDA(ListedLLaDA):
    """LLaDA's own code, which names a cache and refuses it."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
    ) -> Any:
        assert past_key_values is None
        assert not use_cache
        return super().forward(input_ids, attention_mask)


class PlainPublished:
    """Layer by layer: full passes keep the input of every layer, and keys of the others are made anew from those."""

    def __init__(self, network: Any) -> None:
        self.model, self.shifted = network.model, network.shifted

    def full(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self._pass(x, 0, x.shape[1], None)

    def part(self, x: Tensor, kept: list[Tensor], low: int, high: int) -> Tensor:
        return self._pass(x, low, high, kept)[0]

    def _pass(self, x: Tensor, low: int, high: int, kept: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        table, layers, head = self.model.parts
        h, inputs = table.weight[x[:, low:high]], []
        for number, layer in enumerate(layers):
            around = h if kept is None else torch.cat((kept[number][:, :low], h, kept[number][:, high:]), dim=1)
            inputs.append(h)
            read = around / around.square().mean(-1, keepdim=True).add(torch.finfo(torch.float32).eps).sqrt()
            q, k, v = (
                (read @ part.weight.T).unflatten(-1, (HEADS, -1)).transpose(1, 2)
                for part in (layer.q, layer.k, layer.v)
            )
            q, k = turned(q)[:, :, low:high], turned(k)
            weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
            h = layer.mix(h, (weights @ v).transpose(1, 2).flatten(2))
        return head(F.rms_norm(h, (WIDTH,))), inputs
