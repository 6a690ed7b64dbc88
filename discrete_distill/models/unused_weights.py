"""Whether a network on an external model has weights that its output does not depend on."""

from __future__ import annotations

import torch
from torch import nn

from ..process import evaluation_mode
from .wrapped_denoiser import WrappedDenoiser


def has_unused_weights(network: nn.Module) -> bool:
    """Call a network on four tokens, and look for trained weights without a gradient, as in the contact head of ESM.

    Args:
        network: a denoiser or a discriminator; one without a `WrappedDenoiser` inside is not called.

    Returns:
        Whether there are some.
    """
    if not any(isinstance(module, WrappedDenoiser) for module in network.modules()):
        return False
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    device = trained[0].device
    x_t, t = torch.zeros(1, 4, dtype=torch.long, device=device), torch.ones(1, device=device)
    step = {"s": torch.zeros(1, device=device)} if getattr(network, "accepts_step", False) else {}
    with evaluation_mode(network), torch.enable_grad():
        out = network(x_t, t, **step)
    return any(each is None for each in torch.autograd.grad(out.sum(), trained, allow_unused=True))
