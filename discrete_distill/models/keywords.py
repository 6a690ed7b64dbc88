"""Which keywords a model can be called with, so that one that it would ignore is refused."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

USUAL = ("attention_mask", "position_ids")


@dataclass(frozen=True)
class Keywords:
    """What a function takes by name.

    Args:
        names: the names that are known.
        open: whether it takes others too, of which nothing is known.
    """

    names: tuple[str, ...] = ()
    open: bool = True

    @classmethod
    def of(cls, model: Any) -> Keywords:
        """Read from the signature; ``**kwargs`` that are typed, as those of transformers are, state their names."""
        function = model.forward if isinstance(model, nn.Module) else model
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return cls()
        names = [each.name for each in parameters if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)]
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            return cls(tuple(names), open=False)
        typed = _typed_keywords(function, next(each.name for each in parameters if each.kind is each.VAR_KEYWORD))
        return cls((*names, *typed), open=not typed)

    def check(self, given: Iterable[str], model: Any) -> None:
        """Refuse what would be ignored, or end in an error inside the model."""
        for name in given:
            if name in self.names:
                continue
            near = difflib.get_close_matches(name, {*self.names, *USUAL} - {name}, n=1, cutoff=0.8)
            if self.open and (not near or name in USUAL):
                continue
            meant = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(self.names) or 'none'}"
            raise TypeError(f"a {type(model).__name__} is not called with {name!r}; {meant}")


def _typed_keywords(function: Callable[..., Any], name: str) -> list[str]:
    plain: Any = inspect.unwrap(function)
    try:
        hint = typing.get_type_hints(plain, include_extras=True).get(name)
    except (NameError, TypeError, AttributeError):
        return []
    names: list[str] = []
    for each in typing.get_args(hint):
        names += getattr(each, "__required_keys__", ()) or ()
        names += getattr(each, "__optional_keys__", ()) or ()
    return names
