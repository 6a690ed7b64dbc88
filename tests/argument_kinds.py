"""Values that mean nothing for an argument, by kinds of arguments; and what is asked of a function given one."""

import linecache
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import discrete_distill

B, L, V = 4, 6, 5
MASK = V - 1
PACKAGE = Path(discrete_distill.__file__).parent

Mutation = Callable[[Any], Any]
KINDS: dict[str, dict[str, Mutation]] = {
    "tokens": {
        "float": lambda x: x.float(),
        "int32": lambda x: x.int(),
        "one dimension": lambda x: x[0],
        "three dimensions": lambda x: x[None],
        "negative": lambda x: torch.full_like(x, -1),
        "beyond the vocabulary": lambda x: torch.full_like(x, 10 * V),
        "no rows": lambda x: x[:0],
        "no positions": lambda x: x[:, :0],
    },
    "times": {
        "NaN": lambda t: torch.full_like(t, float("nan")),
        "negative": lambda t: torch.full_like(t, -0.1),
        "above 1": lambda t: torch.full_like(t, 1.1),
        "two dimensions": lambda t: t[:, None].expand(B, L),
        "one too few": lambda t: t[:-1],
        "number": lambda t: 0.5,
    },
    "flags": {
        "float": lambda m: m.float(),
        "one row too few": lambda m: m[:-1],
        "one position too few": lambda m: m[:, :-1],
        "one dimension": lambda m: m[0],
    },
    "logits": {
        "integers": lambda x: x.long(),
        "one dimension": lambda x: x[0],
        "no classes": lambda x: x[:, :0],
    },
    "positive": {
        "zero": lambda x: 0.0,
        "negative": lambda x: -1.0,
        "NaN": lambda x: float("nan"),
    },
    "finite": {"infinite": lambda x: float("inf")},
    "not negative": {"negative": lambda x: -1.0, "NaN": lambda x: float("nan")},
    "fraction": {"negative": lambda x: -0.1, "above 1": lambda x: 1.5, "NaN": lambda x: float("nan")},
    "count": {
        "zero": lambda x: 0,
        "negative": lambda x: -1,
        "fraction": lambda x: 1.5,
        "NaN": lambda x: float("nan"),
        "bool": lambda x: True,
    },
    "mask": {
        "int64": lambda m: m.long(),
        "float": lambda m: m.float(),
        "one row": lambda m: m[:1],
        "one row too many": lambda m: torch.cat((m, m[:1])),
        "a leading axis": lambda m: m[None],
        "one number": lambda m: m.flatten()[0],
    },
    "per row": {
        "integers": lambda t: t.long(),
        "bool": lambda t: t > 0,
        "one": lambda t: t[:1],
        "one too many": lambda t: torch.cat((t, t[:1])),
        "a leading axis": lambda t: t[None],
        "one number": lambda t: t[0],
    },
    "of one shape": {
        "integers": lambda x: x.long(),
        "bool": lambda x: x > 0,
        "one row": lambda x: x[:1],
        "one row too few": lambda x: x[:-1],
        "one column": lambda x: x[..., :1],
        "a leading axis": lambda x: x[None],
    },
    "distribution": {
        "negative": lambda p: -p,
        "NaN": lambda p: torch.full_like(p, float("nan")),
        "infinite": lambda p: torch.full_like(p, float("inf")),
        "integers": lambda p: p.long(),
        "bool": lambda p: p > 0,
    },
    "words": {"float": lambda x: x.double(), "bool": lambda x: x > 0},
    "precision": {"double": lambda x: x.double(), "bfloat16": lambda x: x.bfloat16()},
    "generator": {"seed": lambda g: 0},
    "number": {"text": lambda x: "1", "bool": lambda x: True, "NaN": lambda x: float("nan")},
    "size": {"too large to list": lambda n: 2**40, "text": lambda n: "3", "NaN": lambda n: float("nan")},
    "rewards": {
        "NaN": lambda r: torch.full_like(r, float("nan")),
        "two dimensions": lambda r: r[:, None, None],
    },
}


@dataclass(frozen=True)
class Case:
    """A call that works, and the kinds of what is replaced; ``allowed`` are pairs that mean something there."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    kinds: dict[str, tuple[str, ...]]
    allowed: frozenset[tuple[str, str]] = field(default_factory=frozenset)


def refusals(cases: Mapping[str, Case]) -> list[Any]:
    """Parameters of a test: every case with every bad value of each of its arguments."""
    return [
        pytest.param(case, argument, mutation, id=f"{name}: {argument} = {label}")
        for name, case in cases.items()
        for argument, kinds in case.kinds.items()
        for kind in kinds
        for label, mutation in KINDS[kind].items()
        if (argument, label) not in case.allowed
    ]


def check_refused(case: Case, argument: str, mutation: Mutation) -> None:
    """The library itself raises; nothing fails in the depths of another."""
    bad = mutation(case.arguments[argument])
    with pytest.raises((ValueError, TypeError)) as caught:
        case.function(**{**case.arguments, argument: bad})
    last = caught.traceback[-1]
    line = linecache.getline(str(last.path), last.lineno + 1)
    assert PACKAGE in Path(last.path).parents, f"refused in {last.path}"
    assert "raise" in line or "raise" in str(last.statement), f"not refused but failed at: {last.statement}"
