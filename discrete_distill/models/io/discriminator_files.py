"""Discriminators on a trunk of any kind as files: what was trained, over the weights of the base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ...checks import check_count
from ...process import Denoiser
from ..adapted_copy import adapted_copy
from ..discriminator import TrunkDiscriminator, trunk_discriminator
from ..wrappers import unwrap
from .adapter_files import base_of
from .weights import CheckpointError, load_part


def trunk_discriminator_from(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    base: Denoiser | None,
    load_base: Callable[..., Any],
    *,
    source: str,
) -> TrunkDiscriminator:
    """Make the discriminator that `TrunkDiscriminator.save_pretrained` wrote.

    Args:
        config: content of ``discriminator.json``.
        weights: of ``discriminator.safetensors``.
        base: model below it, with which it shares the frozen weights; None takes the one that was named.
        load_base: called with the name, and with how the model is called.
        source: name of the file, for errors.

    Returns:
        The discriminator in evaluation mode, on the device of the base.

    Raises:
        ValueError: if no base is given and none was named.
        CheckpointError: if files and base do not agree.
        ImportError: if it consists of low-rank matrices and peft is not installed.
    """
    if base is None and "base" not in config:
        raise ValueError(f"{source} holds what was trained alone: pass the model below it, base=")
    inner: Any = unwrap(base_of(config, load_base) if base is None else base)[0]
    if not isinstance(inner, nn.Module):
        raise TypeError(f"base must be the model that the discriminator started from, got a {type(inner).__name__}")
    trunk = config["trunk"]
    try:
        if "rank" in trunk:
            made = TrunkDiscriminator(
                adapted_copy(inner, rank=trunk["rank"], alpha=trunk["alpha"], targets=trunk["targets"])
            )
        else:
            made = trunk_discriminator(inner, check_count("trainable_blocks", trunk["trainable_blocks"], minimum=0))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source} describes no discriminator on a {type(inner).__name__}: {error}") from error
    load_part(made, made.own_state(), weights, source=source)
    return made.eval()
