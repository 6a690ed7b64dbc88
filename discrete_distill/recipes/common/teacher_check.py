"""Refusals of a teacher that cannot be distilled as the settings say, before any network is made."""

from __future__ import annotations

import importlib.util
from typing import Any

from ...distillation.divergence import check_autoregressive
from ...models import DiT, EmbeddingDenoiser, HiddenStatesDenoiser
from ...process.blocks import reads_blocks
from .distill_config import DistillConfig
from .network_shape import network_shape
from .teacher import load_network


def check_teacher(config: DistillConfig, teacher: Any) -> None:
    """Refuse a teacher of which the configured networks cannot be made, before any is."""
    if config.sharing == "adapters" and importlib.util.find_spec("peft") is None:
        raise ValueError("--distill.sharing adapters needs peft: pip install 'discrete_distill[lora]'")
    if config.target:
        check_target(config.target, teacher)
    if reads_blocks(teacher):
        _check_blocks(config)
    if isinstance(teacher, DiT):
        return
    name = type(getattr(teacher, "model", teacher)).__name__
    problems = []
    conditioned = config.method.step_conditioning or config.method.auxiliary_step_conditioning
    if conditioned and not isinstance(teacher, EmbeddingDenoiser):
        problems.append("its input embeddings cannot be replaced, and a network is to be passed its step")
    if config.discriminator and not isinstance(teacher, HiddenStatesDenoiser):
        problems.append("its blocks are not known: set --distill.no-discriminator")
    if config.prior_guidance:
        problems.append("guidance by the prior is not merged into its head: set --distill.prior-guidance 0")
    if problems:
        raise ValueError(f"a {name} cannot be distilled like this: {'; '.join(problems)}")


def check_target(path: str, teacher: Any) -> None:
    """Refuse a target that is missing, not autoregressive, or of other tokens.

    Args:
        path: folder of the target.
        teacher: whose student is to learn from it.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the student cannot learn from it.
    """
    target = load_network(path, flag="--distill.target")
    check_autoregressive(target, f"network of --distill.target {path}")
    classes, own = (network_shape(each).vocab_size for each in (target, teacher))
    if classes != own:
        raise ValueError(
            f"--distill.target {path} has {classes} classes and the teacher {own}; give networks of the same tokens"
        )


def _check_blocks(config: DistillConfig) -> None:
    """Refuse what a teacher that reads by blocks cannot be distilled with."""
    kind: Any = config.method.method_class
    problems = []
    if not kind.takes_blocks:
        problems.append(f"{kind.__name__} walks whole sequences: choose another --distill.method")
    if config.method.step_conditioning or config.method.auxiliary_step_conditioning:
        problems.append(
            "it is not passed its step: set step_conditioning to false (--distill.method.paths.no-step-conditioning, "
            "--distill.method.log-ratio.no-step-conditioning)"
        )
    if config.discriminator:
        problems.append("a discriminator reads whole sequences: set --distill.no-discriminator")
    if config.prior_guidance:
        problems.append("it has no guidance by the prior: set --distill.prior-guidance 0")
    if problems:
        raise ValueError(f"a teacher that reads by blocks cannot be distilled like this: {'; '.join(problems)}")
