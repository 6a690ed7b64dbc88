"""A kernel as Triton compiles it ahead of time, under the interface of each version."""

from __future__ import annotations

import inspect
from typing import Any

import triton.backends.compiler as backends
from triton.compiler import ASTSource

ALIGNED = [["tt.divisibility", 16]]


def ast_source(kernel: Any, signature: dict[str, str], constants: dict[str, Any], aligned: list[str]) -> ASTSource:
    """Source of a kernel with these types of arguments, constants, and arguments that are multiples of 16.

    Args:
        kernel: a `triton.jit` function.
        signature: types of its arguments that are no constants, by name.
        constants: values of the others, by name.
        aligned: names of the arguments that are known to be multiples of 16 (pointers: bytes).
    """
    places = [kernel.arg_names.index(name) for name in aligned]
    if "constexprs" not in inspect.signature(ASTSource).parameters:  # Triton 3.2
        ordered = {name: signature[name] for name in kernel.arg_names if name in signature}
        described = {"cls": "AttrsDescriptor", "arg_properties": {"tt.divisibility": places, "tt.equal_to": []}}
        attributes = backends.AttrsDescriptor.from_dict(described)
        return ASTSource(fn=kernel, signature=ordered, constants=constants, attrs=attributes)
    full = {**signature, **dict.fromkeys(constants, "constexpr")}
    ordered = {name: full[name] for name in kernel.arg_names}
    attributes = {(place,): ALIGNED for place in places}
    return ASTSource(fn=kernel, signature=ordered, constexprs=constants, attrs=attributes)
