"""Plot of accuracy against tokens per forward. Importing this does not import matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .plots import _LINE, _cross, _figure, _finish, _footnote, _style

REPEATING = "repeats itself"


@dataclass(frozen=True, kw_only=True)
class AccuracyCurve:
    """Hold accuracies of one network by one decoding.

    Attributes:
        label: name in the legend.
        tokens_per_forward: of each point, positive.
        accuracies: of each point, in ``[0, 1]``.
        intervals: lower and upper end of each accuracy's interval.
        dashed: whether the line is dashed.
        repeating: of each point, whether its answers repeat themselves, so that the accuracy is worth little; none by
            default.

    Raises:
        ValueError: if they are not equally many.

    Examples:
        >>> intervals = ((0.85, 0.94), (0.6, 0.78))
        >>> AccuracyCurve(label="student", tokens_per_forward=(2.0, 4.0), accuracies=(0.9, 0.7), intervals=intervals)
        AccuracyCurve(label='student', ...)
    """

    label: str
    tokens_per_forward: tuple[float, ...]
    accuracies: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    dashed: bool = False
    repeating: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if self.repeating and len(self.repeating) != len(self.accuracies):
            raise ValueError(
                f"{self.label!r}: {len(self.accuracies)} accuracies and {len(self.repeating)} marks of repeating ones; "
                "give one for every point, or none"
            )
        if not len(self.tokens_per_forward) == len(self.accuracies) == len(self.intervals):
            raise ValueError(
                f"{self.label!r}: {len(self.tokens_per_forward)} speeds, {len(self.accuracies)} accuracies and "
                f"{len(self.intervals)} intervals; give one of each for every point"
            )


def plot_accuracy(curves: Sequence[AccuracyCurve], path: Path, *, title: str = "", note: str = "") -> Path:
    """Plot accuracy against tokens per forward (log axis), one curve a network and decoding, with intervals.

    Args:
        curves: at least one.
        path: a PNG, or another format by its suffix; its folder is made.
        title: above the plot.
        note: in the footnote.

    Returns:
        ``path``.

    Raises:
        ValueError: without curves.
    """
    if not curves:
        raise ValueError("a plot of accuracy needs at least one curve, got none")
    figure, axes = _figure(title, title_gap=10.0)
    for index, curve in enumerate(curves):
        points = sorted(zip(curve.tokens_per_forward, curve.accuracies, curve.intervals, strict=True))
        xs, ys, ends = [x for x, _, _ in points], [y for _, y, _ in points], [end for _, _, end in points]
        style = {**_style(index), **_LINE, "linestyle": "--" if curve.dashed else "-"}
        axes.plot(xs, ys, label=curve.label, **style)
        axes.vlines(xs, [low for low, _ in ends], [high for _, high in ends], color=style["color"], linewidth=1.6)
    repeating = [
        (x, y)
        for curve in curves
        for x, y, marked in zip(curve.tokens_per_forward, curve.accuracies, curve.repeating, strict=False)
        if marked
    ]
    _cross(axes, repeating, label=REPEATING)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("tokens per forward")
    axes.set_ylabel("accuracy")
    _footnote(figure, note)
    return _finish(figure, axes, path)
