"""Checks of what a method is made of."""

from __future__ import annotations

from typing import Any

from ...models.in_blocks import InBlocks
from ...process import MaskedDiffusion
from ..networks import Networks


def check_parts(method: Any, networks: Any, process: Any, config: Any) -> None:
    """Refuse parts of another class than the method's.

    Args:
        method: with a ``config_class``, if it has one.
        networks: of the method.
        process: mask and schedule.
        config: every choice.
    """
    if not isinstance(networks, Networks):
        raise TypeError(f"networks must be a Networks, such as make_networks(teacher), got {type(networks).__name__}")
    if not isinstance(process, MaskedDiffusion):
        raise TypeError(f"process must be a MaskedDiffusion, got {type(process).__name__}")
    wanted = getattr(method, "config_class", None)
    if wanted is not None and not isinstance(config, wanted):
        raise TypeError(
            f"the config of {type(method).__name__} must be {wanted.__name__}(...), got {type(config).__name__}"
        )


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
