"""Plots of the exact laboratory's figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = ("#7F7F7F", "#D55E00", "#E69F00", "#CC79A7", "#0072B2", "#009E73", "#56B4E9", "#5B4B8A")


class Figures(Protocol):
    """What is plotted of a row."""

    method: str
    seed: int
    steps: int
    reverse_kl: float


def _axes(title: str, note: str) -> tuple[Any, Any]:
    figure, axes = pyplot.subplots(figsize=(7.2, 4.6), dpi=160, layout="constrained")
    axes.set_title(title, loc="left", fontsize=12.5, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="y", color="#E6E6E6")
    axes.set_axisbelow(True)
    axes.set_yscale("log")
    axes.set_ylabel("KL(sampler || distribution), nats (lower is better)")
    figure.supxlabel(note, fontsize=8, color="#8A8A8A", x=0.01, ha="left")
    return figure, axes


def plot_distances(rows: Sequence[Figures], path: Path) -> None:
    """Distance from the distribution against steps: median over seeds, bars from minimum to maximum."""
    figure, axes = _axes(
        "How far few-step samplers are from the distribution", "5 words, length 6; median of seeds, bars: range"
    )
    names = list(dict.fromkeys(row.method for row in rows))
    names.sort(key=lambda name: {"teacher": 0, "optimal": 9}.get(name, 1))
    for colour, name in zip(COLOURS, names, strict=False):
        own: dict[int, list[float]] = {}
        for row in rows:
            if row.method == name:
                own.setdefault(row.steps, []).append(row.reverse_kl)
        steps = sorted(own)
        median = [statistics.median(own[k]) for k in steps]
        bars = [[m - min(own[k]) for m, k in zip(median, steps, strict=True)],
                [max(own[k]) - m for m, k in zip(median, steps, strict=True)]]  # fmt: skip
        dashed = "--" if name in ("teacher", "optimal") else "-"
        axes.errorbar(steps, median, yerr=bars, marker="o", label=name, color=colour, linestyle=dashed, capsize=3)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axes.set_xlabel("sampling steps")
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)
    pyplot.close(figure)


def plot_attribution(rows: Sequence[Figures], path: Path) -> None:
    """Bars: what each source of knowledge reaches, for each number of steps."""
    figure, axes = _axes("Where the distance is lost", "3 words, length 5; equal updates and samples for all sources")
    names = ["teacher", "discriminator", "auxiliary", "exact ratio", "exact gradient", "optimal"]
    steps = sorted({row.steps for row in rows})
    for place, (colour, name) in enumerate(zip(COLOURS, names, strict=False)):
        values = [statistics.median(r.reverse_kl for r in rows if r.method == name and r.steps == k) for k in steps]
        at = [group + 0.13 * (place - 2.5) for group in range(len(steps))]
        bars = axes.bar(at, [max(value, 1e-4) for value in values], width=0.12, color=colour, label=name)
        axes.bar_label(bars, [f"{value:.3f}" if value >= 1e-3 else f"{value:.0e}" for value in values], fontsize=7)
    axes.set_xticks(range(len(steps)), [f"{k} steps" for k in steps])
    axes.legend(frameon=False, fontsize=9, ncols=3)
    figure.savefig(path)
    pyplot.close(figure)
