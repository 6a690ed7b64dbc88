"""Figures of an evaluation on disk: written as a whole, checked when they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...files import read_json_object, write_text


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write figures as JSON; a file that is there already stays until the new one is complete.

    Raises:
        OSError: if it cannot be written.
    """
    write_text(path, json.dumps(results, indent=1))


def read_results(path: Path, fields: Mapping[str, type], *, stage: str = "evaluate") -> dict[str, Any]:
    """Read figures that a stage wrote."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; run the {stage} stage first, or name another --name")
    results = read_json_object(path)
    for name, kind in fields.items():
        allowed = (int, float) if kind is float else kind
        if name not in results or not isinstance(results[name], allowed):
            found = type(results[name]).__name__ if name in results else "nothing"
            raise ValueError(f"{path} holds {found} as {name!r}: it is not complete; run the {stage} stage again")
    return results
