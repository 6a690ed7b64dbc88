"""Lines of a comparison read at the entropy of data, and those that collapsed."""

from __future__ import annotations

from typing import Any

from ...evaluation import Frontier, FrontierReading
from ..common.diversity_columns import collapses_of, figures_of

Line = dict[str, Any]


def reading_of(line: Line, judge: int, entropy: float) -> FrontierReading:
    """The line's frontier under one judge, read at an entropy."""
    return Frontier.from_dict(line["frontiers"][judge]).read(entropy)


def collapses(results: dict[str, Any], judge: int = 0) -> dict[tuple[str, int], str]:
    """See `collapses_of`; of data in place of the teacher, where the teacher's curves do not reach the entropy of
    data."""
    figures = {
        (line["method"], line["steps"]): reading_of(line, judge, results["data"]["entropy"]).diversity
        for line in results["lines"]
    }
    return collapses_of(figures, figures_of(results["data"].get("between_samples")))
