"""Models inside what other libraries wrap them in, and models of another process than masking."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from ..distributed.parallel import Replicated, unreplicated

UNIFORM_STATE = ("duo", "udlm", "uniform")


def unwrap(model: Any) -> tuple[Any, str]:
    """The model inside DDP, ``torch.compile`` and peft, and the beginning of its modules' names: ``"module."``, ..."""
    prefix = ""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model, part = model.module, "module."
        elif isinstance(model, Replicated):
            model, part = unreplicated(model), "door.module.network."
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model, part = model._orig_mod, "_orig_mod."
        elif hasattr(model, "peft_config") and isinstance(getattr(model, "base_model", None), nn.Module):
            inner = getattr(model.base_model, "model", None)
            if not isinstance(inner, nn.Module):
                return model, prefix
            model, part = inner, "base_model.model."
        else:
            return model, prefix
        prefix += part


def refuse_uniform_state(name: str, *names: Any) -> None:
    """Refuse models that were trained on uniform noise, as DUO (arXiv 2506.10892) and UDLM (arXiv 2412.10193) were."""
    for word in names:
        # "duo_base", "uniform_state", "udlm-small": the word before what follows.
        if isinstance(word, str) and re.split(r"[^a-z0-9]", word.lower())[0] in UNIFORM_STATE:
            raise ValueError(
                f"{name} is a uniform-state model ({word}): it replaces tokens by random ones and has no mask, so the "
                "masked process cannot sample it; give a model that was trained on masks"
            )
