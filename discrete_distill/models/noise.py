"""Noise of training as stated by a checkpoint; nothing in the file is run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from .io.weights import Inert
from .wrappers import refuse_uniform_state

MASKED = ("absorbing", "absorbing_state", "mask", "masked", "mdlm", "sedd", "d3pm_absorb", "ar_mdlm", "bd3lm")
# Where the codes of MDLM, UDLM, DUO and DiDi-Instruct name it, within the configuration that Lightning stores.
PLACES = ("diffusion", "diffusion_type", "forward_process", "algo.name", "algo.diffusion", "algo.diffusion_type")
DEPTH = 12  # of nested settings


def check_noise(stored: Mapping[str, Any], *, source: str) -> None:
    """Refuse a checkpoint that states that it was trained on uniform noise, and warn of one that does not state its
    noise.

    Raises:
        ValueError: if it was trained on uniform noise, as DUO is.
    """
    words = list(_words_of(plain(stored.get("hyper_parameters"))))
    refuse_uniform_state(source, *words)
    if not any(word.lower() in MASKED for word in words):
        warnings.warn(
            f"{source} does not say on which noise its network was trained: one that was trained on uniform noise, as "
            "DUO's are, has no mask, and its samples by the masked process mean nothing",
            stacklevel=3,
        )


def plain(value: Any, depth: int = DEPTH) -> Any:
    """Settings as dictionaries, lists and values: out of what stands for OmegaConf's containers and nodes, and for
    namespaces.

    Args:
        value: read from a pickle.
        depth: levels that are followed; what lies deeper is None.
    """
    if depth == 0:
        return None
    if isinstance(value, Inert):
        state = value.state if isinstance(value.state, Mapping) else {}
        for name in ("_content", "_val"):
            if name in state:
                return plain(state[name], depth)
        return plain(state, depth - 1)
    if isinstance(value, Mapping):
        return {str(name): plain(each, depth - 1) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, depth - 1) for each in value]
    return value


def _words_of(settings: Any) -> Iterator[str]:
    """Words at the places that name the noise, in the settings themselves or under "config"."""
    settings = settings if isinstance(settings, Mapping) else {}
    for root in (settings, settings.get("config")):
        for place in PLACES:
            value = root
            for name in place.split("."):
                value = value.get(name) if isinstance(value, Mapping) else None
            if isinstance(value, str):
                yield value
