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

    Examples:
        >>> student.train()
        DiT(...)
        >>> with evaluation_mode(student):
        ...     print(student.training)
        False
        >>> student.training
        True
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


@contextmanager
def differentiable_evaluation_mode(network: Any) -> Iterator[None]:
    """`evaluation_mode` for a forward pass whose backward pass runs outside of the block.

    The gradient checkpointing of transformers works in training mode alone, and runs blocks again in the mode of the
    backward pass: a network that uses it is left in its own mode, which must then be free of dropout.
    """
    modules = list(network.modules()) if isinstance(network, nn.Module) else []
    if not any(module.training and getattr(module, "gradient_checkpointing", False) is True for module in modules):
        with evaluation_mode(network):
            yield
        return
    dropping = next((module for module in modules if _drops_out(module)), None)
    if dropping is not None:
        raise ValueError(
            f"gradient checkpointing runs blocks again with other dropout than that of the path ({dropping}); set the "
            "dropout of the network to 0, or leave out gradient checkpointing"
        )
    yield


def _drops_out(module: nn.Module) -> bool:
    if not module.training:
        return False
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0.0
    return any("dropout" in name and isinstance(value, float) and value > 0.0 for name, value in vars(module).items())
