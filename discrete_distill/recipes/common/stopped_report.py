"""The report of a run that was stopped for mode collapse."""

from __future__ import annotations

from pathlib import Path

from ...training import TrainingCollapsed, flat_settings, read_metrics
from ...training.mode_collapse import DESCRIPTIONS
from .report_page import write_page
from .run import Run
from .tables import markdown_table, number


def write_report_of_stopped_run(run: Run, error: TrainingCollapsed) -> Path:
    """Write ``report.md`` of a run that has no student: why it was stopped, and what to change."""
    history = read_metrics(run.directory)
    columns = [name for name in DESCRIPTIONS if any(name in line for line in history)]
    rows = [[f"{line['step']:.0f}", *(number(line.get(name), ".3g") for name in columns)] for line in history]
    parts = [
        f"# Distillation: {run.config.name}: stopped",
        f"- Command: `{run.command}`\n- Machine: {run.machine}",
        f"The run has no student: it was {error}.",
        "The checkpoint of the step at which this was first seen is kept; give a run with other settings another name. "
        "Perplexity would not show it: one text with variations has the entropy of data and a better perplexity.",
        "## Student paths, by step\n\n" + markdown_table(["step", *columns], rows),
    ]
    return write_page(run.directory, parts, flat_settings(run.config))
