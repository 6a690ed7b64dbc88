"""The page of a report: its parts, and the settings that it can be reproduced from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

REPORT_FILE = "report.md"


def write_page(directory: Path, parts: Iterable[str], settings: Any) -> Path:
    """Write ``report.md``.

    Returns:
        The path of the page.
    """
    path = directory / REPORT_FILE
    whole = [*parts, "## Settings\n\n```\n" + "\n".join(flatten(settings)) + "\n```"]
    path.write_text("\n\n".join(whole) + "\n", encoding="utf-8")
    return path


def bullets(lines: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def flatten(settings: Any, prefix: str = "") -> list[str]:
    """One line ``name = value`` for every field of nested mappings."""
    if isinstance(settings, dict):
        return [
            line for key, value in settings.items() for line in flatten(value, f"{prefix}.{key}" if prefix else key)
        ]
    return [f"{prefix} = {settings}"]
