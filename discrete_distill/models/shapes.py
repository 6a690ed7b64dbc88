"""Shape of a network, read from its weights; a config file must agree with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .io.weights import CheckpointError, check_real

MOST_BLOCKS = 256
WIDEST = 2**14
ROTARY_BASE = 10_000.0
ROUNDING = 0.01  # relative; frequencies may have been stored in bf16
TELLING = {"vocab_embed.embedding": 2, "sigma_map.mlp.2.weight": 2, "rotary_emb.inv_freq": 1}


def read_shape(weights: Mapping[str, Any], *, source: str, prefix: str = "") -> dict[str, int]:
    """Sizes of a `DiT` by the names of `DiTConfig`; its heads are known by the number of rotary frequencies."""
    if missing := [prefix + name for name in TELLING if prefix + name not in weights]:
        raise CheckpointError(f"{source} holds no network of MDLM's kind; missing: {', '.join(missing)}")
    shapes = []
    for name, rank in TELLING.items():
        value = weights[prefix + name]
        if not isinstance(value, Tensor) or value.dim() != rank or not value.numel():
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(f"{source}: {prefix + name} has shape {shape}, not {rank} sizes above zero")
        shapes.append(tuple(value.shape))
    (vocab_size, hidden_size), (cond_size, _), (half_head,) = shapes
    if max(hidden_size, cond_size) > WIDEST:
        raise CheckpointError(f"{source}: widths of {hidden_size} and {cond_size}; at most {WIDEST} is believed")
    blocks = prefix + "blocks."
    num_layers = len({name[len(blocks) :].partition(".")[0] for name in weights if name.startswith(blocks)})
    if not 1 <= num_layers <= MOST_BLOCKS:
        raise CheckpointError(f"{source} holds {num_layers} blocks; between 1 and {MOST_BLOCKS} are believed")
    if hidden_size % (2 * half_head):
        raise CheckpointError(
            f"{source}: a width of {hidden_size} does not split into heads of {half_head} rotary frequencies"
        )
    _check_frequencies(weights[prefix + "rotary_emb.inv_freq"], source=source)
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_heads": hidden_size // (2 * half_head),
        "cond_size": cond_size,
    }


def _check_frequencies(stored: Tensor, *, source: str) -> None:
    """They are computed from the width of a head, so a network that was trained with others would be another one."""
    count = len(stored)
    expected = torch.tensor([ROTARY_BASE ** (-i / count) for i in range(count)])
    check_real(stored, "rotary_emb.inv_freq", source=source)
    if not torch.allclose(stored.detach().float().cpu(), expected, rtol=ROUNDING, atol=1e-6):
        raise CheckpointError(f"{source}: rotary_emb.inv_freq are not the frequencies of base {ROTARY_BASE:.0f}")


def check_stated(stated: Mapping[str, Any], read: Mapping[str, int], *, source: str) -> None:
    """Refuse a config file that contradicts the weights, before anything of its size is made."""
    for name, size in read.items():
        if name in stated and (isinstance(stated[name], bool) or stated[name] != size):
            raise CheckpointError(f"{source}: its config file has {name} = {stated[name]}, its weights {size}")
