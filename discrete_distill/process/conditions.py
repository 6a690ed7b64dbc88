"""Keywords that a network is passed beside tokens and times: which it takes, and which names are free for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any

from torch import Tensor

RESERVED = frozenset({"x", "x_t", "z", "t", "s", "denoiser", "model_kwargs", "generation_mask", "x_init"})
"""Names that the library passes itself, and no condition may have."""


def call_network(network: Any, function: Callable[..., Any], *inputs: Any, model_kwargs: Mapping[str, Any]) -> Any:
    """``function(*inputs, **model_kwargs)``, where ``function`` is ``network`` or one of its methods."""
    if not callable(function):
        raise TypeError(f"a network is called with tokens and times, and a {type(network).__name__} is not callable")
    try:
        return function(*inputs, **model_kwargs)
    except TypeError:
        check_keywords(network, function, model_kwargs)
        raise


def check_keywords(network: Any, function: Callable[..., Any], names: Collection[str]) -> None:
    """Refuse keywords that ``function``, ``network`` or one of its methods, does not take.

    A signature that cannot be read passes.
    """
    parameters = _parameters(function)
    if parameters is None or any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return
    taken = [name for name, each in parameters.items() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    missing = [name for name in names if name not in taken]
    if missing:
        reason = (
            "it cannot leave padding out, so give it sequences of one length, without attention_mask"
            if missing[0] == "attention_mask"
            else "leave it out, or add it to the signature (`**_` accepts what is not needed)"
        )
        raise TypeError(f"{name_of(network)} takes no keyword {missing[0]!r}: {reason}")


def check_conditions(model_kwargs: Mapping[str, Any] | None, denoiser: Any, arguments: Collection[str] = ()) -> None:
    """Refuse conditions that have a name of the library's own, or a misspelt one.

    Args:
        model_kwargs: what the denoiser is to be passed by keyword.
        denoiser: a name that its signature states is not taken for a misspelt one.
        arguments: further names that are taken, because they are arguments of the call.
    """
    if model_kwargs is None:
        return
    if not isinstance(model_kwargs, Mapping) or not all(isinstance(name, str) for name in model_kwargs):
        raise TypeError(f"model_kwargs is a mapping from names to values, got {model_kwargs!r}")
    for name in model_kwargs:
        if name in RESERVED or name in arguments:
            raise TypeError(
                f"{name!r} cannot be the name of a condition, for the library uses it: rename the denoiser's argument; "
                "or, if an argument of the call is meant, pass it there"
            )
    stated = _parameters(denoiser) or {}
    for name in model_kwargs:
        close = get_close_matches(name, {"attention_mask"}, n=1, cutoff=0.85)
        if close and name != "attention_mask" and name not in stated:
            raise TypeError(f"{name!r} is no argument that is known here; is {close[0]!r} meant?")


def take_rows(model_kwargs: Mapping[str, Any], sequences: Tensor | slice | None, batch: int) -> dict[str, Any]:
    """The keyword arguments of some sequences, int64 ``[b]`` or a slice, or of all if None: tensors with an entry for
    each of the batch are indexed, other values are shared."""
    if sequences is None:
        return dict(model_kwargs)
    return {name: value[sequences] if has_rows(value, batch) else value for name, value in model_kwargs.items()}


def has_rows(value: Any, batch: int) -> bool:
    """Whether the value is a tensor with an entry for each sequence."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch


def name_of(network: Any) -> str:
    """The name of a function, or of a network's class."""
    network = getattr(network, "_orig_mod", network)
    return getattr(network, "__name__", type(network).__name__)


def _parameters(function: Any) -> Mapping[str, inspect.Parameter] | None:
    """Parameters of a callable; None if they cannot be read. A module's are those of its ``forward``."""
    function = getattr(function, "_orig_mod", function)
    try:
        return inspect.signature(getattr(function, "forward", function)).parameters
    except (TypeError, ValueError):
        return None
