"""Evaluation mode for the length of a block, whatever mode the caller's networks are in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluation_mode(*networks: Any, parametrizations: bool = True) -> Iterator[None]:
    """Put networks into evaluation mode inside the block, and every submodule back into its own mode behind it.

    Dropout is then off and no buffer moves: a reward is the same number however often it is read. Nothing but
    ``training`` is touched, and nothing at all where a network is in evaluation mode already.

    Args:
        networks: modules; whatever else is given (functions, None) has no mode and is passed over.
        parametrizations: also those of ``torch.nn.utils.parametrize``. False leaves them as they are, so that a
            spectral norm goes on following its weights while a network is trained without dropout.
    """
    switched = [
        module
        for network in networks
        if isinstance(network, nn.Module)
        for name, module in network.named_modules()
        if module.training and (parametrizations or "parametrizations" not in name.split("."))
    ]
    for module in switched:
        module.training = False
    try:
        yield
    finally:
        for module in switched:
            module.training = True
