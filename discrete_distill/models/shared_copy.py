"""A copy of a network that shares its frozen weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def shared_copy(network: Network, *, copied: Sequence[nn.Module] = ()) -> Network:
    """Copy modules and buffers of a network, and share its weights, frozen in the copy.

    The copy has modules of its own, so that adapters, hooks and modes of one do not touch the other. Its weights are
    those of the network where these are frozen; where the network trains them, a frozen parameter on the same memory.
    Copies of a copy hold the same parameters, and follow each other to another device.

    Args:
        network: it stays as it is.
        copied: modules inside it whose parameters are copied instead, and trained in the copy.

    Returns:
        The copy.
    """
    own = {id(parameter) for module in copied for parameter in module.parameters()}
    made: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False) if parameter.requires_grad else parameter
        for parameter in network.parameters()
        if id(parameter) not in own
    }
    duplicate = copy.deepcopy(network, made)  # what it holds under these identities is not copied
    for module in copied:
        made[id(module)].requires_grad_(True)
    return duplicate
