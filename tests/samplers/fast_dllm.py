"""Decoding with approximate caches after the published algorithm of Fast-dLLM (arXiv 2505.22618), one sequence at a
time, and tiny networks written out for it: a DiT layer by layer, a Llama through the cache of transformers."""

from __future__ import annotations

import math
from typing import Any

import torch
import transformers
from torch import Tensor

from discrete_distill import as_denoiser
from discrete_distill.models import DiT, DiTConfig

V, MASK = 9, 8


def randomised(model: Any, std: float) -> Any:
    """All weights random, so large that what is read decides which token comes; what is added to all alike is zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=std, generator=generator)
            if name.startswith("output_layer.adaLN") or (name.endswith("bias") and "adaLN" not in name):
                parameter.zero_()
            if name.endswith(("embed_tokens.weight", "vocab_embed.embedding")):
                parameter[MASK] *= 0.1
    return model.eval()


def dit(block_length: int | None = None, **settings: Any) -> DiT:
    config = DiTConfig(
        vocab_size=V, max_length=64, hidden_size=16, num_layers=2, num_heads=2, cond_size=4,
        block_length=block_length, **settings,
    )  # fmt: skip
    return randomised(DiT(config), 0.5)


def llama(block_length: int | None = None, shifted: bool = False) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    model = randomised(transformers.LlamaForCausalLM(config), 1.0)
    return as_denoiser(model, attention="full", block_length=block_length, shifted=shifted)


class PlainDiT:
    """Full passes keep the input of every layer; a pass over a part makes keys and values of the others from those."""

    shifted = False

    def __init__(self, network: DiT) -> None:
        self.network = network

    def full(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self._pass(x, 0, x.shape[1], None)

    def part(self, x: Tensor, kept: list[Tensor], low: int, high: int) -> Tensor:
        return self._pass(x, low, high, kept)[0]

    def _pass(self, x: Tensor, low: int, high: int, kept: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        network, inputs = self.network, []
        cond = network.condition(torch.zeros(1), None)
        h = network.vocab_embed.embedding[x[:, low:high]]
        for number, block in enumerate(network.blocks):
            around = h if kept is None else torch.cat((kept[number][:, :low], h, kept[number][:, high:]), dim=1)
            inputs.append(h)
            shift, scale, gate, shift_m, scale_m, gate_m = block.adaLN_modulation(cond)[:, None].chunk(6, dim=-1)
            read = block.attn_qkv(block.norm1(around) * (1 + scale) + shift)
            q, k, v = (each.unflatten(-1, (2, -1)).transpose(1, 2) for each in read.chunk(3, dim=-1))
            q, k = turned(q)[:, :, low:high], turned(k)
            weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
            h = h + gate * block.attn_out((weights @ v).transpose(1, 2).flatten(2))
            h = h + gate_m * block.mlp(block.norm2(h) * (1 + scale_m) + shift_m)
        return network.project(network.output_layer.features(h, cond)), inputs


def turned(x: Tensor) -> Tensor:
    """Rotary positions by complex numbers; the index is the position."""
    half = x.shape[-1] // 2
    angle = torch.outer(torch.arange(x.shape[2]).float(), 10_000.0 ** (-torch.arange(half) / half))
    as_complex = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((as_complex.real, as_complex.imag), dim=-1)


class PlainLlama:
    """Calls with the cache of transformers, from which the keys of the part are cut out."""

    def __init__(self, network: Any) -> None:
        self.model, self.shifted = network.model, network.shifted

    def full(self, x: Tensor) -> tuple[Tensor, Any]:
        length = x.shape[1]
        out = self.model(input_ids=x, attention_mask=torch.zeros(1, 1, length, length), use_cache=True)
        return out.logits, out.past_key_values

    def part(self, x: Tensor, kept: Any, low: int, high: int) -> Tensor:
        cache = transformers.DynamicCache()
        for number, layer in enumerate(kept.layers):
            keys, values = (
                torch.cat((each[:, :, :low], each[:, :, high:]), dim=2) for each in (layer.keys, layer.values)
            )
            cache.update(keys, values, number)
        return self.model(
            input_ids=x[:, low:high],
            attention_mask=torch.zeros(1, 1, high - low, x.shape[1]),
            position_ids=torch.arange(low, high)[None],
            past_key_values=cache,
            use_cache=True,
        ).logits


@torch.no_grad()
def generate(
    network: Any,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    *,
    dual: bool,
    steps: int | None,
    threshold: float,
) -> tuple[list[int], int]:
    """Tokens and calls. ``steps`` of each block, or the threshold if None; temperature 0."""
    x, calls = torch.tensor([prompt + [MASK] * gen_length]), 0
    end = x.shape[1]
    for low in range(len(prompt), end, block_length):
        high = min(low + block_length, end)
        amounts = None if steps is None else [(high - low) // steps + (i < (high - low) % steps) for i in range(steps)]
        kept, first, step = None, None, 0
        while bool((x[:, low:high] == MASK).any()):
            if kept is None:
                logits, kept = network.full(x)
                first = logits[:, max(low - 1, 0)]
                logits = logits[:, low:high] if not network.shifted else shift(logits, first, low, high)
            else:
                logits = network.part(x, kept, low, high if dual else end)[:, : high - low]
                if network.shifted:
                    logits = torch.cat((first[:, None] if low else logits[:, :1], logits[:, :-1]), dim=1)
            calls += 1
            reveal(x, logits[0], low, high, threshold if amounts is None else None, amounts and amounts[step])
            step += 1
    return x[0].tolist(), calls


def shift(logits: Tensor, first: Tensor, low: int, high: int) -> Tensor:
    return torch.cat((first[:, None], logits[:, low : high - 1]), dim=1)


def reveal(x: Tensor, logits: Tensor, low: int, high: int, threshold: float | None, amount: int | None) -> None:
    logits = logits.clone()
    logits[:, MASK] = -torch.inf
    best = logits.softmax(-1).max(-1)
    hidden = sorted((i for i in range(low, high) if int(x[0, i]) == MASK), key=lambda i: -float(best.values[i - low]))
    for rank, i in enumerate(hidden):
        if rank < amount if threshold is None else rank == 0 or float(best.values[i - low]) >= threshold:
            x[0, i] = best.indices[i - low]
