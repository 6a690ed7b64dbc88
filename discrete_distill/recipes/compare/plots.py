"""Plots of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...evaluation import (
    Frontier,
    StepCurve,
    lost_diversity,
    of_samples_alone,
    plot_frontier,
    plot_perplexity_by_steps,
)
from ...evaluation.checks import exponential
from ..common.diversity_columns import figures_of
from .readings import collapses, reading_of


def draw_plots(results: dict[str, Any], directory: Path, title: str) -> None:
    """Write ``frontier.png`` and ``steps.png`` into ``directory``."""
    chosen = [
        Frontier.from_dict(line["frontiers"][0])
        for line in results["lines"]
        if line["steps"] == results["frontier_steps"] or len(_steps_of(results, line["method"])) == 1
    ]
    entropy, judge = results["data"]["entropy"], results["judges"][0]
    # A curve far from the data's entropy would leave the others a corner of the plot; it is in the tables.
    reaching = [frontier for frontier in chosen if frontier.read(entropy).within_range]
    plot_frontier(
        reaching or chosen,
        directory / "frontier.png",
        data_entropy=entropy,
        data_diversity=figures_of(results["data"].get("between_samples")),
        title=title,
    )
    plot_perplexity_by_steps(
        step_curves(results),
        directory / "steps.png",
        judge=judge,
        title=title,
        data_perplexity=exponential(results["data"]["nats_per_token"][judge]),
        note=f"at {entropy:.2f} nats, the entropy of data; {len(results['seeds'])} seeds",
    )


def _steps_of(results: dict[str, Any], method: str) -> list[int]:
    return [line["steps"] for line in results["lines"] if line["method"] == method]


def step_curves(results: dict[str, Any], judge: int = 0) -> list[StepCurve]:
    """Log-perplexity at the entropy of data against steps, one curve a method."""
    curves, data = [], of_samples_alone(figures_of(results["data"].get("between_samples")))
    collapsed = collapses(results, judge)
    for name in dict.fromkeys(line["method"] for line in results["lines"]):
        lines = [line for line in results["lines"] if line["method"] == name]
        readings = [reading_of(line, judge, results["data"]["entropy"]) for line in lines]
        curves.append(
            StepCurve(
                label=name,
                steps=tuple(line["steps"] for line in lines),
                nats_per_token=tuple(reading.nats_per_token for reading in readings),
                standard_errors=tuple(reading.standard_error for reading in readings),
                less_diverse=tuple(
                    (name, line["steps"]) in collapsed or bool(lost_diversity(reading.diversity, data))
                    for line, reading in zip(lines, readings, strict=True)
                ),
            )
        )
    return curves
