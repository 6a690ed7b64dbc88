"""Plots: the frontier, and perplexity against steps. Importing this does not import matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .between_samples import Estimate
from .checks import exponential
from .collapse import lost_diversity, of_samples_alone
from .frontier import Frontier

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, distinguishable for colour-blind readers; the markers repeat the distinction in grey, and are
# one more, so that a ninth curve has the colour of the first and not its marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B4B8A", "#7F7F7F")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h", "*")
INK, FAINT = "#222222", "#8A8A8A"
LETTERS_OF_HALF_A_LINE = 45  # of the legend
LESS_DIVERSE = "less diverse than data"
SIZE_INCHES, DOTS_PER_INCH = (7.2, 5.2), 160


@dataclass(frozen=True, kw_only=True)
class StepCurve:
    """Log-perplexities of one method over numbers of steps.

    Attributes:
        label: name in the legend.
        steps: student evaluations, in rising order.
        nats_per_token: at each; None where there is no reading.
        standard_errors: of those, in nats; None where unknown.
        less_diverse: at each, whether samples are less diverse than data, by `lost_diversity`; empty where none is.

    Raises:
        ValueError: if they are not equally many.

    Examples:
        >>> from pathlib import Path
        >>> curve = StepCurve(label="student", steps=(8, 16), nats_per_token=(3.4, 3.1), standard_errors=(0.1, None))
        >>> plot_perplexity_by_steps([curve], Path("steps.png"), judge="GPT-2").exists()
        True
    """

    label: str
    steps: tuple[int, ...]
    nats_per_token: tuple[float | None, ...]
    standard_errors: tuple[float | None, ...]
    less_diverse: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if self.less_diverse and len(self.less_diverse) != len(self.steps):
            raise ValueError(
                f"{self.label!r}: {len(self.steps)} steps and {len(self.less_diverse)} marks of diversity; give one of "
                "each for every step, or none"
            )
        if not len(self.steps) == len(self.nats_per_token) == len(self.standard_errors):
            raise ValueError(
                f"{self.label!r}: {len(self.steps)} steps, {len(self.nats_per_token)} log-perplexities and "
                f"{len(self.standard_errors)} standard errors; give one of each for every step"
            )


def plot_frontier(
    frontiers: Sequence[Frontier],
    path: Path,
    *,
    data_entropy: float | None = None,
    data_diversity: Mapping[str, Estimate] | None = None,
    title: str = "",
) -> Path:
    """Perplexity (log axis) against entropy, one curve a method, means over seeds with their standard errors.

    The numbers along the first curve are sampling temperatures. Where a curve crosses the entropy of data, a
    ring marks the perplexity that is compared; the legend repeats it, or reads "collapsed". A cross over a point means
    that its samples are less diverse than data, by the figures of `of_samples_alone`.

    Args:
        frontiers: of at least one method, under one judge.
        path: a PNG, or another format by its suffix; its folder is made.
        data_entropy: mean unigram entropy of data of the same length, in nats.
        data_diversity: figures between as many samples of data, of `measure_between_samples`; without them no point is
            marked as less diverse.
        title: above the plot.

    Returns:
        ``path``.

    Raises:
        ValueError: without frontiers, or if their judges differ.

    Examples:
        >>> from pathlib import Path
        >>> frontier = measure_frontier(lambda *_: data, judge, method="data", temperatures=(0.9, 1.0), seeds=(0, 1))
        >>> plot_frontier([frontier], Path("frontier.png")).exists()
        True
    """
    judges = sorted({frontier.judge for frontier in frontiers})
    if len(judges) != 1:
        raise ValueError(f"a frontier plot needs curves under one judge, got {judges}")
    figure, axes = _figure(title, title_gap=18.0)
    kept = of_samples_alone(data_diversity or {})
    for index, frontier in enumerate(frontiers):
        _draw_frontier(axes, frontier, index, data_entropy, kept)
    means = [mean for frontier in frontiers for mean in frontier.means() if lost_diversity(mean.diversity, kept)]
    _mark_less_diverse(axes, [(mean.entropy, mean.nats_per_token) for mean in means])
    if frontiers:
        _write_temperatures(axes, frontiers[0])
    if data_entropy is not None:
        _draw_data_entropy(axes, data_entropy)
    axes.set_yscale("log")
    _plain_log_ticks(axes)
    axes.set_xlabel("unigram entropy of a sample, nats  (more diverse →)")
    axes.set_ylabel("generative perplexity (lower is better)")
    seeds = max(len(frontier.seeds) for frontier in frontiers)
    _footnote(figure, f"judge: {judges[0]} · {frontiers[0].num_samples} samples a point · {_seeds_text(seeds)}")
    return _finish(figure, axes, path)


def plot_perplexity_by_steps(
    curves: Sequence[StepCurve],
    path: Path,
    *,
    judge: str,
    title: str = "",
    data_perplexity: float | None = None,
    note: str = "",
) -> Path:
    """Plot perplexity against steps, both axes logarithmic, one curve a method.

    Bars are one standard error; a cross over a point means that its samples are less diverse than data.

    Args:
        curves: of at least one method; a point without a reading leaves a gap.
        path: a PNG, or another format by its suffix; its folder is made.
        judge: name of the judge.
        title: above the plot.
        data_perplexity: of real text under the same judge, drawn as a line.
        note: added to the footnote, as "at the entropy of data, 3 seeds".

    Returns:
        ``path``.

    Raises:
        ValueError: without curves.

    Examples:
        >>> from pathlib import Path
        >>> curve = StepCurve(label="student", steps=(8, 16), nats_per_token=(3.4, 3.1), standard_errors=(0.1, None))
        >>> plot_perplexity_by_steps([curve], Path("steps.png"), judge="GPT-2", note="3 seeds").name
        'steps.png'
    """
    if not curves:
        raise ValueError("a plot of perplexity by steps needs at least one curve")
    figure, axes = _figure(title, title_gap=10.0)
    for index, curve in enumerate(curves):
        _draw_steps(axes, curve, index)
    _mark_less_diverse(
        axes,
        [
            (step, nats)
            for curve in curves
            for step, nats, marked in zip(curve.steps, curve.nats_per_token, curve.less_diverse, strict=False)
            if marked and nats is not None
        ],
    )
    if data_perplexity is not None:
        _draw_data_perplexity(axes, data_perplexity)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    steps = sorted({step for curve in curves for step in curve.steps})
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.minorticks_off()
    _plain_log_ticks(axes)
    axes.set_xlabel("sampling steps")
    axes.set_ylabel("generative perplexity (lower is better)")
    _footnote(figure, " · ".join(filter(None, (f"judge: {judge}", note))))
    return _finish(figure, axes, path)


def _figure(title: str, *, title_gap: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if title:
        axes.set_title(title, loc="left", fontsize=12.5, fontweight="bold", color=INK, pad=title_gap)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9.5, color=FAINT)
    axes.tick_params(which="minor", color=FAINT, labelsize=8)
    axes.grid(True, which="major", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _draw_frontier(
    axes: Axes, frontier: Frontier, index: int, data_entropy: float | None, kept: Mapping[str, Estimate]
) -> None:
    means = frontier.means()
    reading = None if data_entropy is None else frontier.read(data_entropy)
    value = None if reading is None else reading.perplexity
    label = frontier.method
    if reading is not None and lost_diversity(reading.diversity, kept):
        label, value = f"{label}  (collapsed at data entropy)", None
    elif reading is not None:
        label += f"  ({value:.3g} at data entropy)" if value is not None else "  (does not reach data entropy)"
    entropies = [mean.entropy for mean in means]
    nats = [mean.nats_per_token for mean in means]
    _draw_curve(axes, entropies, nats, [mean.nats_error for mean in means], index, label)
    bars = {"ecolor": _style(index)["color"], **_BARS}
    axes.errorbar(entropies, [exponential(n) for n in nats], xerr=[mean.entropy_error or 0.0 for mean in means], **bars)
    if reading is not None and value is not None:
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": _style(index)["color"], "linewidths": 1.8}
        axes.scatter([reading.entropy], [value], s=150, zorder=4, **ring)


def _draw_steps(axes: Axes, curve: StepCurve, index: int) -> None:
    read = [
        (step, nats, error)
        for step, nats, error in zip(curve.steps, curve.nats_per_token, curve.standard_errors, strict=True)
        if nats is not None
    ]
    if not read:
        axes.plot([], [], label=f"{curve.label}  (no reading)", **_style(index))
        return
    steps, nats, errors = (list(column) for column in zip(*read, strict=True))
    _draw_curve(axes, steps, nats, errors, index, curve.label)


_LINE: dict[str, Any] = {
    "linewidth": 2.0,
    "markersize": 6.0,
    "markeredgecolor": "white",
    "markeredgewidth": 0.8,
    "zorder": 3,
}
_BARS: dict[str, Any] = {"fmt": "none", "elinewidth": 1.6, "zorder": 2.5}


def _draw_curve(
    axes: Axes,
    xs: Sequence[float],
    nats: Sequence[float],
    errors: Sequence[float | None],
    index: int,
    label: str,
) -> None:
    """A line through perplexities, with bars from one standard error below to one above."""
    perplexities = [exponential(value) for value in nats]
    axes.plot(xs, perplexities, label=label, **_style(index), **_LINE)
    axes.errorbar(xs, perplexities, yerr=_perplexity_bars(nats, errors), ecolor=_style(index)["color"], **_BARS)


def _mark_less_diverse(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """A cross over each point, given as its abscissa and its log-perplexity."""
    _cross(axes, [(x, exponential(nats)) for x, nats in points], label=LESS_DIVERSE)


def _cross(axes: Axes, points: Sequence[tuple[float, float]], *, label: str) -> None:
    """A cross over each point, and one entry in the legend."""
    if points:
        xs, ys = zip(*points, strict=True)
        axes.scatter(xs, ys, marker="x", s=70, color=INK, linewidths=1.6, zorder=5, label=label)


def _perplexity_bars(nats: Sequence[float], errors: Sequence[float | None]) -> list[list[float]]:
    """From one standard error below to one above in nats, as distances in perplexity: ``[below, above]``."""
    below = [exponential(n) - exponential(n - (e or 0.0)) for n, e in zip(nats, errors, strict=True)]
    above = [exponential(n + (e or 0.0)) - exponential(n) for n, e in zip(nats, errors, strict=True)]
    return [below, above]


def _write_temperatures(axes: Axes, frontier: Frontier) -> None:
    from matplotlib.patheffects import withStroke

    for mean in frontier.means():
        axes.annotate(
            f"T={mean.temperature:g}",
            (mean.entropy, exponential(mean.nats_per_token)),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=FAINT,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _draw_data_entropy(axes: Axes, data_entropy: float) -> None:
    axes.axvline(data_entropy, color=INK, linewidth=1.0, linestyle=(0, (5, 3)), zorder=1)
    axes.annotate(
        f"entropy of data {data_entropy:.2f}",
        (data_entropy, 1.0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=8.5,
        color=INK,
    )


def _draw_data_perplexity(axes: Axes, data_perplexity: float) -> None:
    axes.axhline(data_perplexity, color=INK, linewidth=1.0, linestyle=(0, (5, 3)), zorder=1)
    axes.annotate(
        f"data {data_perplexity:.3g}",
        (0.0, data_perplexity),
        xycoords=axes.get_yaxis_transform(),
        xytext=(5, 4),
        textcoords="offset points",
        ha="left",
        va="bottom",
        fontsize=8.5,
        color=INK,
    )


def _plain_log_ticks(axes: Axes) -> None:
    """Plain numbers up the logarithmic axis, as many as its range needs."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axes.get_ylim()
    if high / low < 4.0:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    else:
        subs = (1.0, 2.0, 5.0) if high / low > 50.0 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
        axes.yaxis.set_major_locator(LogLocator(base=10.0, subs=subs))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _seeds_text(count: int) -> str:
    return f"{count} seeds, bars: standard error" if count > 1 else "1 seed"


def _footnote(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=8, color=FAINT, x=0.01, ha="left")


def _finish(figure: Figure, axes: Axes, path: Path) -> Path:
    # Below the axes: with five curves there is no free corner.
    longest = max((len(label) for label in axes.get_legend_handles_labels()[1]), default=0)
    axes.legend(
        fontsize=9.5,
        labelcolor=INK,
        edgecolor="none",
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
        ncols=1 if longest > LETTERS_OF_HALF_A_LINE else 2,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
