"""The bidirectional diffusion transformer of MDLM (arXiv 2406.07524), after DiT (arXiv 2212.09748): rotary
positions, adaptive layer norm, a head over the vocabulary. Attention is PyTorch's own; module names follow
MDLM's checkpoints.

Shape suffixes: B batch, L length, D width, H heads, V vocabulary, C conditioning width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from einops import rearrange
from torch import Tensor, nn

from ..checks import check_count, check_flag, check_number, check_per_row
from ..kernels.autocast import autocast_dtype
from ..process import (
    CosineSchedule,
    GeometricSchedule,
    LinearSchedule,
    LogLinearSchedule,
    MaskingSchedule,
    PolynomialSchedule,
    evaluation_mode,
)
from .attention_masks import real_tokens
from .head import VocabularyHead
from .io.hub import HubNetwork
from .io.weights import CheckpointError
from .layers import LayerNorm, Rotary, TimestepEmbedder, rotate
from .lora import refuse_unmerged

MAX_SIGMA = 20.0
SCHEDULES: dict[str, MaskingSchedule] = {
    "log_linear": LogLinearSchedule(),
    "linear": LinearSchedule(),
    "cosine": CosineSchedule(),
    "polynomial": PolynomialSchedule(),
    "geometric": GeometricSchedule(),
}


@dataclass(kw_only=True, frozen=True)
class DiTConfig:
    """Shape of the network.

    Args:
        vocab_size: classes, mask included.
        max_length: longest sequence it is meant for, in tokens; longer ones are refused.
        hidden_size: width (paper: 768).
        num_layers: blocks (paper: 12).
        num_heads: attention heads (paper: 12).
        cond_size: width of the conditioning vector (paper: 128).
        dropout: probability inside blocks during training (paper: 0.1).
        time_conditioning: feed ``sigma(t)`` to the network; MDLM does not, and feeds zero.
        schedule: whose ``sigma`` that is: the schedule of the process that the network is trained with, so that it is
            told how much is masked. MDLM's, log-linear with ``eps`` of 1e-3, by default; else "linear", "cosine",
            "polynomial" or "geometric", with their own defaults. Infinite noise is told as 20 nats.
        step_conditioning: also tell it the step ``(t, s)``, through an embedding that starts at zero.
        bf16_blocks: run the blocks and the head under bf16 autocast, as MDLM does; weights, the residual stream and the
            conditioning stay in their own precision. Off by default: the caller's autocast decides.

    Raises:
        ValueError: if the width is not a multiple of twice the number of heads, a size is not positive, the dropout is
            no probability below 1, or the schedule is unknown.
        TypeError: if a size is no whole number, or a switch is neither true nor false.
    """

    vocab_size: int
    max_length: int = 1024
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    cond_size: int = 128
    dropout: float = 0.1
    time_conditioning: bool = False
    schedule: str = "log_linear"
    step_conditioning: bool = False
    bf16_blocks: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_length", "hidden_size", "num_layers", "num_heads", "cond_size"):
            check_count(name, getattr(self, name))
        for name in ("time_conditioning", "step_conditioning", "bf16_blocks"):
            check_flag(name, getattr(self, name))
        check_number("dropout", self.dropout, least=0.0, below=1.0)
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of 2 * num_heads = {2 * self.num_heads}, "
                "so that a head splits into rotary pairs"
            )


def config_from(fields: Any) -> DiTConfig:
    """A configuration as read from a file.

    Raises:
        CheckpointError: if it is none.
    """
    try:
        return DiTConfig(**fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the config file describes no network: {error}") from error


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

    def attend(self, x_BLD: Tensor, rotary: tuple[Tensor, Tensor], attention_mask: Tensor | None) -> Tensor:
        qkv = rearrange(self.attn_qkv(x_BLD), "b l (three h d) -> three b h l d", three=3, h=self.num_heads)
        q, k, v = rotate(qkv[0], *rotary), rotate(qkv[1], *rotary), qkv[2]
        out_BHLd = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        return self.attn_out(rearrange(out_BHLd, "b h l d -> b l (h d)"))

    def forward(
        self, x_BLD: Tensor, cond_BC: Tensor, rotary: tuple[Tensor, Tensor], attention_mask: Tensor | None
    ) -> Tensor:
        modulation = self.adaLN_modulation(cond_BC)[:, None].chunk(6, dim=-1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation
        out = self.attend(modulate(self.norm1(x_BLD), shift_attn, scale_attn), rotary, attention_mask)
        x_BLD = x_BLD + gate_attn * F.dropout(out, self.dropout, self.training)
        out = self.mlp(modulate(self.norm2(x_BLD), shift_mlp, scale_mlp))
        return x_BLD + gate_mlp * F.dropout(out, self.dropout, self.training)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of a checkpointed block's run and of its run in the backward pass. Behind a call in evaluation mode the block may
    be in training mode again by then."""
    return nullcontext(), nullcontext() if block.training else evaluation_mode(block)


def modulate(x_BLD: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """``x (1 + scale) + shift``."""
    return x_BLD * (1.0 + scale_B1D) + shift_B1D


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


class DiT(HubNetwork):
    """Denoiser of MDLM: ``logits = project(features(x_t, t))``. See `Denoiser` for the protocol.

    Args:
        config: its shape, or a dictionary of the same fields (as read back from ``config.json``).
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
        if config.step_conditioning:
            self.step_map = TimestepEmbedder(config.cond_size, num_scalars=2)
            for parameter in self.step_map.mlp[-1].parameters():
                nn.init.zeros_(parameter)

    @property
    def accepts_step(self) -> bool:
        """Whether the network is told where its step ends."""
        return self.config.step_conditioning

    @property
    def time_conditioned(self) -> bool:
        """Whether its answer depends on ``t`` or ``s``; if not, samplers share more of its answers."""
        return self.config.time_conditioning or self.config.step_conditioning

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
        if x_t.shape[1] > self.config.max_length:
            raise ValueError(
                f"a sequence of {x_t.shape[1]} tokens is longer than the model's max_length "
                f"{self.config.max_length}; cut it, or build the model with a larger max_length"
            )
        try:
            return self.vocab_embed(x_t)
        except IndexError as error:
            raise ValueError(
                f"token ids from {int(x_t.min())} to {int(x_t.max())} do not all lie in the model's vocabulary of "
                f"{self.config.vocab_size}; is the tokenizer the model's own?"
            ) from error

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
        self, h_BLD: Tensor, t: Tensor, s: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the last block returns, ``[B, L, D]``, and the conditioning vector; arguments as in `encode`."""
        check_per_row("t", t, len(h_BLD))
        cond = self.condition(t, s)
        rotary = self.rotary_emb(h_BLD.shape[1])
        key_mask = None
        if attention_mask is not None:
            key_mask = real_tokens(attention_mask, h_BLD.shape[:2])[:, None, None, :]
        with self.precision(h_BLD.device):
            for block in self.blocks:
                if self.checkpoint_blocks and torch.is_grad_enabled():
                    h_BLD = torch.utils.checkpoint.checkpoint(
                        block, h_BLD, cond, rotary, key_mask, use_reentrant=False, context_fn=partial(_contexts, block)
                    )
                else:
                    h_BLD = block(h_BLD, cond, rotary, key_mask)
        return h_BLD, cond

    def encode(self, h_BLD: Tensor, t: Tensor, s: Tensor | None = None, attention_mask: Tensor | None = None) -> Tensor:
        """From embeddings ``[B, L, D]`` (of ids, or mixtures of embeddings) to head features ``[B, L, D]``.

        Args:
            h_BLD: embeddings.
            t: ``[B]``.
            s: ``[B]`` or None, see ``step_conditioning``.
            attention_mask: bool ``[B, L]``, true at real tokens; padding is never attended to.

        Raises:
            ValueError: if ``attention_mask`` has another shape.
            TypeError: if it is of floating point, as additive masks are.
        """
        h_BLD, cond = self.trunk(h_BLD, t, s, attention_mask)
        with self.precision(h_BLD.device):
            return self.output_layer.features(h_BLD, cond)

    def features(
        self, x_t: Tensor, t: Tensor, *, s: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Head features ``[B, L, D]``."""
        return self.encode(self.embed(x_t), t, s, attention_mask)

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
        self, x_t: Tensor, t: Tensor, *, s: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Raw logits ``[B, L, V]``."""
        return self.project(self.features(x_t, t, s=s, attention_mask=attention_mask))

    def activation_checkpointing_enable(self, **_: Any) -> None:
        """Keep the inputs of blocks alone, as transformers' Trainer asks for it; its options are not used."""
        self.checkpoint_blocks = True

    gradient_checkpointing_enable = activation_checkpointing_enable

    def with_step_conditioning(self) -> DiT:
        """A copy that is also told its step; its answers are this network's until it is trained.

        Raises:
            ValueError: if there are LoRA weights that were not merged.
        """
        refuse_unmerged(self)
        config = DiTConfig(**{**asdict(self.config), "step_conditioning": True})
        copy = DiT(config).to(self.output_layer.linear.weight)
        missing, unexpected = copy.load_state_dict(self.state_dict(), strict=False)
        assert not unexpected
        assert all(name.startswith("step_map.") for name in missing)
        copy.checkpoint_blocks = self.checkpoint_blocks
        return copy.train(self.training)
