"""Parts of the transformer that do not depend on diffusion: rotary positions, norm, embedding of scalars."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..process import evaluation_mode
from .shapes import ROTARY_BASE

NUM_FREQUENCIES = 128


def rotate(x_BHLd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864), halves rotated against each other, in fp32; cosines and sines
    ``[L, d / 2]``, or ``[B, 1, L, d / 2]`` where rows are at different positions."""
    first, second = x_BHLd.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x_BHLd.dtype)


class Rotary(nn.Module):
    """Cosines and sines for every position, ``[L, head_dim / 2]``, or of stated ones.

    Frequencies are computed in fp32 at each call. The buffer of MDLM's checkpoints is kept for its name alone: in half
    precision it would be off by 0.45 rad at position 1000.
    """

    inv_freq: Tensor

    def __init__(self, head_dim: int, base: float = ROTARY_BASE) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.base = base
        # Of a list: on the meta device, where weights are checked first, arithmetic costs seconds of imports.
        self.register_buffer("inv_freq", torch.tensor([base ** (-i / head_dim) for i in range(0, head_dim, 2)]))

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        return self.at(torch.arange(length, device=self.inv_freq.device))

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[..., head_dim / 2]`` of integer positions ``[...]``."""
        exponents = torch.arange(0, self.head_dim, 2, device=positions.device, dtype=torch.float32) / self.head_dim
        angle = positions.float()[..., None] * self.base**-exponents
        return angle.cos(), angle.sin()


class LayerNorm(nn.Module):
    """Layer norm in fp32 with a scale and no bias."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), (x.shape[-1],), self.weight.float()).to(x.dtype)


def modulate(x_BLD: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """``x (1 + scale) + shift``."""
    return x_BLD * (1.0 + scale_B1D) + shift_B1D


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of a scalar, then a two-layer network: ``[B] -> [B, C]``."""

    def __init__(self, cond_size: int, num_scalars: int = 1) -> None:
        super().__init__()
        size = 2 * NUM_FREQUENCIES * num_scalars
        self.mlp = nn.Sequential(nn.Linear(size, cond_size), nn.SiLU(), nn.Linear(cond_size, cond_size))

    def forward(self, *scalars: Tensor) -> Tensor:
        features = torch.cat([sinusoidal_features(scalar) for scalar in scalars], dim=-1)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))


def zero_initialised(embedder: TimestepEmbedder) -> TimestepEmbedder:
    """The embedder with zeros in its last layer: it returns zero until it is trained."""
    for parameter in embedder.mlp[-1].parameters():
        nn.init.zeros_(parameter)
    return embedder


def sinusoidal_features(scalar_B: Tensor) -> Tensor:
    """``[B, 2 * NUM_FREQUENCIES]``: cosines then sines, periods spaced geometrically up to 10 000."""
    steps = torch.arange(NUM_FREQUENCIES, device=scalar_B.device, dtype=torch.float32)
    frequencies = torch.exp(-math.log(10_000.0) * steps / NUM_FREQUENCIES)
    angle = scalar_B[:, None].float() * frequencies
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


def block_contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of a checkpointed block's run and of its run in the backward pass. Behind a call in evaluation mode the block may
    be in training mode again by then."""
    return nullcontext(), nullcontext() if block.training else evaluation_mode(block)
