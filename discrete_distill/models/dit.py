"""The diffusion transformer of MDLM (arXiv 2406.07524), after DiT (arXiv 2212.09748): rotary positions, adaptive layer
norm, a head over the vocabulary; with attention both ways, or by blocks as BD3-LM (arXiv 2503.09573). Attention is
PyTorch's own; module names follow MDLM's checkpoints.

Shape suffixes: B batch, L length, D width, H heads, V vocabulary, C conditioning width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from einops import rearrange
from torch import Tensor, nn

from ..checks import check_per_row
from ..kernels.autocast import autocast_dtype
from ..process.sequences import real_tokens
from .attention import as_bias, attend, pays_in_tiles
from .attention_masks import biased, readable, row_positions
from .block_cache import BlockCache
from .block_reading import BlockReading
from .dit_config import MAX_SIGMA, SCHEDULES, DiTConfig
from .head import VocabularyHead
from .io.hub import HubNetwork
from .layers import LayerNorm, Rotary, TimestepEmbedder, block_contexts, modulate, rotate, zero_initialised
from .lora import refuse_unmerged

Cached = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From the keys and values of a part to those of all tokens that it reads."""


class Embedding(nn.Module):
    """Token embedding under MDLM's parameter name."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, hidden_size))
        nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding(x, self.embedding)


class Block(nn.Module):
    """Attention and feed-forward, each modulated and gated by the conditioning vector."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.norm1 = LayerNorm(size)
        self.attn_qkv = nn.Linear(size, 3 * size, bias=False)
        self.attn_out = nn.Linear(size, size, bias=False)
        self.norm2 = LayerNorm(size)
        self.mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(approximate="tanh"), nn.Linear(4 * size, size))
        self.adaLN_modulation = nn.Linear(config.cond_size, 6 * size)
        nn.init.zeros_(self.adaLN_modulation.weight)
        nn.init.zeros_(self.adaLN_modulation.bias)
        if config.position_bias:
            self.position_bias = nn.Parameter(torch.zeros(config.num_heads, config.max_length, config.max_length))

    def attend(
        self, x_BLD: Tensor, places: tuple[Tensor, Tensor] | None, attention_mask: Any, cached: Cached | None
    ) -> Tensor:
        qkv = rearrange(self.attn_qkv(x_BLD), "b l (three h d) -> three b h l d", three=3, h=self.num_heads)
        if hasattr(self, "position_bias"):
            q, k, v = qkv
            attention_mask = biased(self.position_bias, q, attention_mask, places)
        else:
            assert places is not None
            (q, k), v = rotate(qkv[:2], *places), qkv[2]
        if cached is not None:
            k, v = cached(k, v)
        out_BHLd = attend(q, k, v, attention_mask)
        return self.attn_out(rearrange(out_BHLd, "b h l d -> b l (h d)"))

    def forward(
        self,
        x_BLD: Tensor,
        cond_BC: Tensor,
        places: tuple[Tensor, Tensor] | None,
        attention_mask: Any,
        cached: Cached | None = None,
    ) -> Tensor:
        modulation = self.adaLN_modulation(cond_BC)[:, None].chunk(6, dim=-1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation
        out = self.attend(modulate(self.norm1(x_BLD), shift_attn, scale_attn), places, attention_mask, cached)
        x_BLD = x_BLD + gate_attn * F.dropout(out, self.dropout, self.training)
        out = self.mlp(modulate(self.norm2(x_BLD), shift_mlp, scale_mlp))
        return x_BLD + gate_mlp * F.dropout(out, self.dropout, self.training)


class FinalLayer(nn.Module):
    """Norm, modulation and the vocabulary head. The head starts at zero: uniform predictions."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm_final = LayerNorm(config.hidden_size)
        self.linear = VocabularyHead(config.hidden_size, config.vocab_size)
        self.adaLN_modulation = nn.Linear(config.cond_size, 2 * config.hidden_size)
        for layer in (self.linear, self.adaLN_modulation):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def features(self, x_BLD: Tensor, cond_BC: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(cond_BC)[:, None].chunk(2, dim=-1)
        return modulate(self.norm_final(x_BLD), shift, scale)


class DiT(BlockReading, HubNetwork):
    """Denoiser of MDLM: ``logits = project(features(x_t, t))``.

    See `Denoiser` for the protocol, and `BlockDenoiser` for the cache of keys and values.

    Args:
        config: its shape, or a dictionary of the same fields (as read back from ``config.json``).

    Examples:
        >>> size = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "cond_size": 8}
        >>> network = DiT(DiTConfig(vocab_size=9, max_length=16, **size))
        >>> network(x_t, t).abs().max().item()  # At first all ids are equally likely.
        0.0
        >>> network.save_pretrained("teacher")
        >>> DiT.from_pretrained("teacher").config.vocab_size
        9
    """

    def __init__(self, config: DiTConfig | dict[str, Any]) -> None:
        super().__init__()
        self.config = config if isinstance(config, DiTConfig) else DiTConfig(**config)
        config = self.config
        self.checkpoint_blocks = False  # Keep the inputs of blocks alone; run them again in the backward pass.
        self.vocab_embed = Embedding(config.vocab_size, config.hidden_size)
        self.sigma_map = TimestepEmbedder(config.cond_size)
        self.rotary_emb = Rotary(config.hidden_size // config.num_heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.output_layer = FinalLayer(config)
        if config.position_bias:
            self.position_embedding = nn.Parameter(torch.zeros(config.max_length, config.hidden_size))
        if config.step_conditioning:
            self.step_map = zero_initialised(TimestepEmbedder(config.cond_size, num_scalars=2))

    shifted = False

    @property
    def accepts_step(self) -> bool:
        """Whether the network is passed the end of its step."""
        return self.config.step_conditioning

    @property
    def time_conditioned(self) -> bool:
        """Whether its answer depends on ``t`` or ``s``; if not, samplers share more of its answers."""
        return self.config.time_conditioning or self.config.step_conditioning

    @property
    def block_length(self) -> int | None:  # type: ignore[override]
        """Positions in a block, or None for attention both ways."""
        return self.config.block_length

    @property
    def num_classes(self) -> int:
        """Size of the vocabulary, mask included."""
        return self.config.vocab_size

    def embed(self, x_t: Tensor) -> Tensor:
        """Token embeddings ``[B, L, D]`` of ids ``[B, L]``.

        Raises:
            ValueError: if the sequence is longer than ``config.max_length``, or, on a CPU, an id lies outside the
                vocabulary.
            TypeError: if ids are not int64 or int32.
        """
        if x_t.dtype not in (torch.int64, torch.int32) or x_t.dim() != 2:
            raise TypeError(f"ids must be int64 of shape [B, L], got {x_t.dtype} of shape {list(x_t.shape)}")
        self.check_length(x_t.shape[1])
        return self._look_up(x_t)

    def check_length(self, length: int) -> None:
        """Raise ValueError if rows are longer than ``config.max_length``; with rotary positions a cache goes on."""
        if length > self.config.max_length:
            raise ValueError(
                f"a sequence of {length} tokens is longer than the model's max_length {self.config.max_length}; cut "
                "it, or build the model with a larger max_length"
            )

    def _look_up(self, x_t: Tensor) -> Tensor:
        try:
            return self.vocab_embed(x_t)
        except IndexError as error:
            raise ValueError(
                f"token ids from {int(x_t.min())} to {int(x_t.max())} do not all lie in the model's vocabulary of "
                f"{self.config.vocab_size}; is the tokenizer the model's own?"
            ) from error

    def embedding_weight(self) -> Tensor:
        """Token embeddings ``[V, D]``."""
        return self.vocab_embed.embedding

    def condition(self, t: Tensor, s: Tensor | None) -> Tensor:
        """Conditioning vector ``[B, C]``, or ``[1, C]`` where no row differs from another."""
        sigma = torch.zeros_like(t[:1])
        if self.config.time_conditioning:
            sigma = SCHEDULES[self.config.schedule].sigma(t).clamp(max=MAX_SIGMA)
        cond = self.sigma_map(sigma)
        if self.config.step_conditioning and s is not None:
            # Times are spread over the range that the sinusoids resolve.
            cond = cond + self.step_map(1000.0 * t, 1000.0 * s)
        return F.silu(cond)

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """Autocast to bf16 where the blocks run in it, else nothing."""
        return torch.autocast(device.type, torch.bfloat16) if self.config.bf16_blocks else nullcontext()

    def trunk(
        self,
        h_BLD: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        layer: int = -1,
    ) -> tuple[Tensor, Tensor]:
        """Output ``[B, L, D]`` of a block, and the conditioning vector.

        Args:
            h_BLD: embeddings of ids, or mixtures of embeddings.
            t: ``[B]``.
            s: ``[B]`` or None, see ``step_conditioning``.
            attention_mask: bool ``[B, L]``, true at real tokens; padding is never attended to.
            layer: the last block that is run; -1 is the last of all.

        Raises:
            ValueError: if ``attention_mask`` has another shape.
            TypeError: if it is of floating point, as additive masks are.
        """
        check_per_row("t", t, len(h_BLD))
        real_BL = None if attention_mask is None else real_tokens(attention_mask, h_BLD.shape[:2])
        mask = None if real_BL is None else real_BL[:, None, None, :]
        places, biased_BL = (None, real_BL) if self.config.position_bias else (self.rotary_emb(h_BLD.shape[1]), None)
        if self.block_length is not None or biased_BL is not None:
            positions = row_positions(h_BLD.new_ones(1, h_BLD.shape[1]).bool() if real_BL is None else real_BL)
            mask = mask if self.block_length is None else readable(positions, positions, self.block_length)
            places = places if biased_BL is None else (positions.clamp(min=0),) * 2
        return self._run(h_BLD, self.condition(t, s), places, mask, layer)

    def _run(
        self,
        h_BLD: Tensor,
        cond: Tensor,
        places: tuple[Tensor, Tensor] | None,
        mask: Any,
        layer: int = -1,
        cache: BlockCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        if self.config.position_bias:
            h_BLD = h_BLD + self.position_embedding[slice(h_BLD.shape[1]) if places is None else places[0]]
        with self.precision(h_BLD.device):
            mask = mask if self.config.position_bias else as_bias(mask, autocast_dtype(h_BLD))
            for number, block in enumerate(self.blocks[: layer % len(self.blocks) + 1]):
                if cache is not None:
                    h_BLD = block(h_BLD, cond, places, mask, partial(cache.update, layer_idx=number))
                elif self.checkpoint_blocks and torch.is_grad_enabled():
                    h_BLD = torch.utils.checkpoint.checkpoint(
                        block, h_BLD, cond, places, mask, use_reentrant=False, context_fn=partial(block_contexts, block)
                    )
                else:
                    h_BLD = block(h_BLD, cond, places, mask)
        return h_BLD, cond

    def hidden_states(
        self,
        x_t: Tensor,
        t: Tensor,
        layer: int,
        *,
        s: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Output ``[B, L, D]`` of block ``layer``, counted from 0; later blocks are not run."""
        h_BLD = self.embed(x_t) if inputs_embeds is None else inputs_embeds
        return self.trunk(h_BLD, t, s, attention_mask, layer=layer)[0]

    def features(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        s: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Head features ``[B, L, D]``.

        Args:
            x_t: int64 ``[B, L]``.
            t: ``[B]``.
            s: ``[B]`` or None, see ``step_conditioning``.
            attention_mask: bool ``[B, L]``, true at real tokens; padding is never attended to.
            inputs_embeds: ``[B, L, D]``, read in the place of ``embed(x_t)``.

        Raises:
            ValueError: if ``attention_mask`` has another shape.
            TypeError: if it is of floating point, as additive masks are.
        """
        h_BLD = self.embed(x_t) if inputs_embeds is None else inputs_embeds
        h_BLD, cond = self.trunk(h_BLD, t, s, attention_mask)
        with self.precision(h_BLD.device):
            return self.output_layer.features(h_BLD, cond)

    def read_part(
        self,
        x: Tensor,
        t: Tensor,
        cache: BlockCache | None,
        positions: Tensor,
        mask: Any,
        model_kwargs: dict[str, Any],
    ) -> Tensor:
        """See `BlockReading`."""
        if unknown := set(model_kwargs) - {"s"}:
            raise TypeError(f"a DiT takes no keyword {min(unknown)!r}: leave it out")
        cond = self.condition(t, model_kwargs.get("s"))
        places = None if self.config.position_bias else self.rotary_emb.at(positions[:, None])
        if self.config.position_bias:
            keys = positions if cache is None else torch.cat((cache.positions.clamp(min=0), positions), dim=1)
            if cache is not None and keys.shape[1] > self.config.max_length:  # of slots, which are more with padding
                self.check_length(int(keys.max()) + 1)
            places = positions, keys
        h_BLD, cond = self._run(self._look_up(x), cond, places, mask, cache=cache)
        with self.precision(h_BLD.device):
            return self.output_layer.features(h_BLD, cond)

    def pays_in_tiles(self, tokens: Tensor) -> bool:
        """See `BlockReading`."""
        return not self.config.position_bias and pays_in_tiles(tokens, self.rotary_emb.head_dim)

    def weights_dtype(self) -> torch.dtype:
        """Of the embeddings."""
        return self.vocab_embed.embedding.dtype

    def project(self, features: Tensor) -> Tensor:
        """Vocabulary logits ``[..., V]`` of features ``[..., D]``."""
        with self.precision(features.device):
            return self.output_layer.linear(features)

    def projection(self) -> Callable[[Tensor], Tensor]:
        """`project` for features in several chunks: without gradients, autocast casts the head once and not in each."""
        head = self.output_layer.linear
        with self.precision(head.weight.device):
            dtype = autocast_dtype(head.weight)
            if torch.is_grad_enabled() or dtype == head.weight.dtype or type(head) is not VocabularyHead:
                return self.project
            return head.cast(dtype)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        s: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Raw logits ``[B, L, V]``; arguments as in `features`."""
        return self.project(self.features(x_t, t, s=s, attention_mask=attention_mask, inputs_embeds=inputs_embeds))

    def activation_checkpointing_enable(self, **_: Any) -> None:
        """Keep the inputs of blocks alone, as transformers' Trainer calls it; its options are not used."""
        self.checkpoint_blocks = True

    gradient_checkpointing_enable = activation_checkpointing_enable

    def add_step_conditioning(self) -> None:
        """Pass this network its step as well, through an embedding that starts at zero; its outputs stay as they are.

        Raises:
            ValueError: if there are LoRA weights that were not merged.
        """
        refuse_unmerged(self)
        if self.config.step_conditioning:
            return
        self.config = replace(self.config, step_conditioning=True)
        self._hub_mixin_config = self.config  # what save_pretrained writes
        self.step_map = zero_initialised(TimestepEmbedder(self.config.cond_size, num_scalars=2))
        self.step_map.to(self.output_layer.linear.weight).train(self.training)
