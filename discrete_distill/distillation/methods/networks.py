"""Networks of a method: copies of the teacher that are trained, and what a configuration asks of them."""

from __future__ import annotations

import copy
from typing import Any

from ...models import DiT
from ...models.io.hub import HubNetwork


def trainable_copy(teacher: DiT, *, step_conditioning: bool) -> DiT:
    """A copy whose parameters all have gradients, in evaluation mode: it has no dropout until its owner calls
    ``train()``. The teacher stays as it is.

    Args:
        teacher: whose answers the copy's first answers are.
        step_conditioning: tell the copy the end of its step as well.

    Raises:
        TypeError: if it is to be told its step, and is no network of this library.
    """
    if step_conditioning and not hasattr(teacher, "with_step_conditioning"):
        raise TypeError(
            f"a {type(teacher).__name__} cannot be told its step, as a DiT can: set step_conditioning=False in paths, "
            "and in the log-ratio for its auxiliary"
        )
    made = teacher.with_step_conditioning() if step_conditioning else copy.deepcopy(teacher)
    if isinstance(teacher, HubNetwork) and isinstance(made, HubNetwork):
        made.tokenizer_fingerprint = teacher.tokenizer_fingerprint
    return made.requires_grad_(True).eval()


def check_accepts_step(network: Any, role: str, choice: str) -> None:
    """Refuse a network that would never be told the step that the configuration promises it.

    Args:
        network: any denoiser; a wrapper around one must hand its ``accepts_step`` on.
        role: what it is called, such as "student".
        choice: the field of the configuration.

    Raises:
        ValueError: if it has no true attribute ``accepts_step``.
    """
    if not getattr(network, "accepts_step", False):
        raise ValueError(
            f"{choice}=True, but the {role}, a {type(network).__name__}, has no true attribute accepts_step and would "
            f"never be told its step: make it with make_{role}, hand the attribute on in a wrapper, or set "
            f"{choice}=False"
        )
