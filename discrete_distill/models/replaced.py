"""Modules of an external model that are replaced for the length of a call: its head, its table of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, the module computes something else; its parameters stay where they are."""
    own = vars(module)
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


@contextmanager
def output_kept(module: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, outputs of the module are appended to the list; of a tuple, the first."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple | list) else output)

    hook = module.register_forward_hook(keep)
    try:
        yield kept
    finally:
        hook.remove()
