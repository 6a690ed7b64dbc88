"""Plot of the mass of each mode under samplers whose distribution is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = {"right": "#222222", "kept": "#0072B2", "lost": "#D55E00"}


class ModeFigures(Protocol):
    """What is plotted of a row."""

    @property
    def name(self) -> str: ...

    @property
    def steps(self) -> int: ...

    @property
    def modes(self) -> tuple[float, ...]: ...


def plot_modes(panels: Sequence[tuple[str, ModeFigures]], weights: Sequence[float], path: Path) -> None:
    """One panel for each sampler: bars are the mass of each mode, black marks its weight in the language.

    Bars of modes with less than half of their weight or more than twice of it are orange.

    Args:
        panels: title and figures of each.
        weights: of the modes in the language.
        path: of the PNG.
    """
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(3.0 * len(panels), 3.4), dpi=160, sharey=True, layout="constrained", squeeze=False
    )
    places = range(1, len(weights) + 1)
    for panel, (title, row) in zip(axes[0], panels, strict=True):
        masses = [mode * weight for mode, weight in zip(row.modes, weights, strict=True)]
        colours = [COLOURS["kept" if 0.5 <= mode <= 2.0 else "lost"] for mode in row.modes]
        panel.bar(places, masses, color=colours, width=0.7)
        panel.plot(
            places, weights, linestyle="none", marker="_", markersize=13, markeredgewidth=2, color=COLOURS["right"]
        )
        panel.set_title(title, loc="left", fontsize=10, fontweight="bold")
        panel.set_xlabel("mode")
        panel.set_xticks(list(places))
        panel.set_yscale("symlog", linthresh=0.3)
        panel.set_ylim(0.0, 1.1)
        panel.set_yticks([0.0, 0.1, 0.2, 0.3, 1.0], ["0", "0.1", "0.2", "0.3", "1"])
        panel.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("mass")
    figure.supxlabel(
        "black: weight of the mode in the language; orange: less than half or more than twice of it",
        fontsize=8,
        color="#6A6A6A",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
