"""Discriminators of a recipe as files: whole for a `DiT`; on any other trunk what was trained, over the teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...models import TrunkDiscriminator, load_discriminator
from ...models.io.hub import CONFIG_FILE, DISCRIMINATOR_CONFIG_FILE
from ...process import Denoiser
from ...training import ModuleOptimizer


def save_discriminator(discriminator: ModuleOptimizer, directory: Path) -> None:
    """Write the averaged discriminator; all processes call it, the first one writes."""
    whole: Any = discriminator.gather_averaged()
    if discriminator.accelerator.is_main_process:
        for earlier in (CONFIG_FILE, DISCRIMINATOR_CONFIG_FILE):
            (directory / earlier).unlink(missing_ok=True)  # It may be of the other kind.
        whole.save_pretrained(directory)


def read_discriminator(directory: Path, teacher: Callable[[], Denoiser]) -> TrunkDiscriminator | None:
    """Read what `save_discriminator` wrote, in evaluation mode on the CPU or the device of its trunk; None if there is
    nothing.
    """
    if (directory / DISCRIMINATOR_CONFIG_FILE).exists():
        return load_discriminator(directory, base=teacher())
    return load_discriminator(directory) if (directory / CONFIG_FILE).exists() else None
