"""The report of a run that was stopped for mode collapse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...training import TrainingCollapsed
from ...training.mode_collapse import DESCRIPTIONS
from .report_page import write_page
from .tables import markdown_table, number


def write_report_of_stopped_run(
    error: TrainingCollapsed,
    history: list[dict[str, float]],
    directory: Path,
    *,
    title: str,
    command: str,
    machine: str,
    settings: dict[str, Any],
) -> Path:
    """Write ``report.md`` of a run that has no student: why it was stopped, and what to change.

    Args:
        error: that stopped it.
        history: metrics of the distillation.
        directory: of the run.
        title: of the page.
        command: that was given.
        machine: that ran it.
        settings: every field, to be reproduced from.
    """
    columns = [name for name in DESCRIPTIONS if any(name in line for line in history)]
    rows = [[f"{line['step']:.0f}", *(number(line.get(name), ".3g") for name in columns)] for line in history]
    parts = [
        f"# {title}: stopped",
        f"- Command: `{command}`\n- Machine: {machine}",
        f"The run has no student: it was {error}.",
        "The checkpoint of the step at which this was first seen is kept; give a run with other settings another name. "
        "Perplexity would not show it: one text with variations has the entropy of data and a better perplexity.",
        "## Student paths, by step\n\n" + markdown_table(["step", *columns], rows),
    ]
    return write_page(directory, parts, settings)
