"""Markdown tables and the cells of reports: one writer, so that a missing figure looks the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with one line for each row.

    Raises:
        ValueError: if a row has another number of cells.

    Examples:
        >>> print(markdown_table(["steps", "perplexity"], [["8", "102.5"]]))
        | steps | perplexity |
        |---|---|
        | 8 | 102.5 |
    """
    body = [list(row) for row in rows]
    for row in body:
        if len(row) != len(header):
            raise ValueError(f"{len(row)} cells in {row}, {len(header)} columns in {list(header)}; they must agree")
    lines = [f"| {' | '.join(cells)} |" for cells in (list(header), *body)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def number(value: float | None, form: str, missing: str = "") -> str:
    """A formatted figure.

    Args:
        value: None or NaN where it was not measured.
        form: as of `format`.
        missing: what stands in its place then.
    """
    return missing if value is None or math.isnan(value) else format(value, form)


def span(values: Iterable[float], form: str = ".3f") -> str:
    """The minimum and the maximum of some figures."""
    known = list(values)
    return f"{min(known):{form}} to {max(known):{form}}"
