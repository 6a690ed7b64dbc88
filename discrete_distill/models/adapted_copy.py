"""A network on the weights of another, with low-rank matrices of its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Generator, nn

from .lora import add_lora
from .shared_copy import shared_copy
from .step_conditioning import step_conditioned


def adapted_copy(
    base: nn.Module,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str] | None = None,
    step_conditioning: bool = False,
    generator: Generator | None = None,
) -> nn.Module:
    """Share the weights of a network, frozen in the copy, and add low-rank matrices to its linear layers.

    Args:
        base: it stays as it is.
        rank: of the matrices.
        alpha: scale of their product; see `add_lora`.
        targets: likewise.
        step_conditioning: pass the copy its step; the embedding of the step is its own, and trained.
        generator: source of the matrices' initial values.

    Returns:
        The copy in evaluation mode; its first outputs are those of the base.

    Raises:
        ImportError: if peft is not installed.
        TypeError: if the copy is to be passed its step and cannot be.
        ValueError: if no linear layer has one of the names, or one of them is tied.
    """
    step_maps = [module for name, module in base.named_children() if name == "step_map"]
    network = shared_copy(base, copied=step_maps)
    if step_conditioning:
        network = step_conditioned(network)
    return add_lora(network, rank=rank, alpha=alpha, targets=targets, generator=generator).eval()
