"""Checks of the networks of a method against its configuration."""

from __future__ import annotations

from typing import Any

from ...models.in_blocks import InBlocks


def check_accepts_step(network: Any, role: str, choice: str) -> None:
    """Refuse a network that would never be passed the step that the configuration states.

    Args:
        network: any denoiser; a wrapper around one must hand its ``accepts_step`` on.
        role: what it is called, such as "student".
        choice: the field of the configuration.
    """
    if isinstance(network, InBlocks):
        raise ValueError(
            f"{choice}=True, but the {role} reads by blocks, and such a network is not passed its step: set "
            f"{choice}=False"
        )
    if not getattr(network, "accepts_step", False):
        raise ValueError(
            f"{choice}=True, but the {role}, a {type(network).__name__}, has no true attribute accepts_step and would "
            f"never be passed its step: make it with make_{role}, hand the attribute on in a wrapper, or set "
            f"{choice}=False"
        )
