"""The vocabulary head of an external model: run apart from the rest, where nothing that matters comes after it.

Shape suffixes: B batch, L length, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

GREATEST_LOGIT = 1e4  # at which a cap on the logits shows, also in fp16
TOLERANCE = 0.02  # relative; a scale that is applied in half precision before the head or after it


@contextmanager
def replaced(head: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, the module computes something else; its parameters stay where they are."""
    own = vars(head)
    before = own.get("forward")
    own["forward"] = forward
    try:
        yield
    finally:
        del own["forward"]
        if before is not None:
            own["forward"] = before


def set_aside(head: nn.Module) -> Any:
    """Inside, the module returns what it is given."""
    return replaced(head, lambda features, *_, **__: features)


def why_not_apart(call: Callable[[Tensor, Tensor], Tensor], head: nn.Module, device: torch.device) -> str | None:
    """Why ``head(model with its head set aside)`` is not ``model``, or None where it is.

    Random features are given to the head, large enough to show a cap on the logits, so that what the model does after
    its head is seen whatever its weights are. The mode of the model and the global random state stay as they are.

    Args:
        call: logits of ids ``[1, 4]`` and a time ``[1]``, with nothing else.
        head: a module of the model.
        device: of the ids.
    """
    # Neither weights that are not there nor those of FSDP, which all processes would have to ask for.
    if any(each.is_meta or hasattr(each, "device_mesh") for each in head.parameters()):
        return None
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices, device_type="cuda"):
        try:
            return _difference(lambda: call(torch.tensor([[0, 1, 0, 1]], device=device), torch.ones(1)), head)
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError):
            return None  # A model that cannot be asked so, say without a condition, is believed.


def _difference(call: Callable[[], Tensor], head: nn.Module) -> str | None:
    read: list[Any] = []

    def note(features: Any, *_: Any, **__: Any) -> Any:
        read.append(features)
        return features

    with replaced(head, note):
        call()
    if len(read) != 1 or not isinstance(read[0], Tensor):
        return f"its head is run {len(read)} times in a call"
    features = torch.randn_like(read[0])
    features = features * min(GREATEST_LOGIT / float(head(features).abs().max().clamp_min(1.0)), GREATEST_LOGIT)
    logits = head(features)
    with replaced(head, lambda *_, **__: features):
        after = call()
    with replaced(head, lambda *_, **__: logits):
        whole = call()
    apart = head(after)
    if apart.shape != whole.shape:
        return f"its logits have shape {tuple(whole.shape)}, those of its head alone {tuple(apart.shape)}"
    difference = float((apart - whole).abs().max())
    if difference > TOLERANCE * max(float(whole.abs().max()), 1.0):
        return (
            f"it changes the logits after its head (by {difference:.3g} at logits of {float(logits.abs().max()):.3g})"
        )
    return None
