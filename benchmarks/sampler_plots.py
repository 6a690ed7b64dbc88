"""Plots of `benchmarks.samplers`: what sampling costs beside the published chain, and how a step grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

OURS_COLOUR, CHAIN_COLOUR, PLAIN_COLOUR = "#1b6ca8", "#c8553d", "#9aa0a6"
NAMES = {"vocab": "vocabulary", "batch": "sequences in the batch", "steps": "steps of the sampler"}


def write(folder: Path, rows: list[dict[str, Any]], document: dict[str, Any]) -> None:
    """``samplers.png`` and ``samplers-growth.png``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    where = f"{document['cpu']}, {document['threads']} thread{'s' if document['threads'] != 1 else ''}"

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 3.9))
    _alone(left, [row for row in rows if row["part"] == "reverse step alone"])
    _end_to_end(right, [row for row in rows if row["part"] == "end to end"])
    figure.text(0.995, 0.005, where, ha="right", va="bottom", size=7, color="#666666")
    figure.tight_layout(w_pad=3)
    figure.savefig(folder / "samplers.png", dpi=150)
    plt.close(figure)

    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True)
    for axis, name in zip(axes, NAMES, strict=True):
        _growth(axis, name, [row for row in rows if row["part"] == f"step against {name}"])
    axes[0].set_ylabel("ms a step, without the network")
    axes[0].legend(frameon=False, loc="upper left")
    figure.text(0.995, 0.005, where, ha="right", va="bottom", size=7, color="#666666")
    figure.tight_layout()
    figure.savefig(folder / "samplers-growth.png", dpi=150)
    plt.close(figure)


def _colour(method: str) -> str:
    if method.startswith("discrete_distill"):
        return OURS_COLOUR
    return CHAIN_COLOUR if method.startswith("chain") else PLAIN_COLOUR


def _bars(axis: Any, labels: list[str], rows: list[dict[str, Any]], notes: list[str]) -> None:
    values = [row["seconds"] for row in rows]
    spread = [
        [v - row["seconds_least"] for v, row in zip(values, rows, strict=True)],
        [row["seconds_most"] - v for v, row in zip(values, rows, strict=True)],
    ]
    places = range(len(rows))
    axis.barh(places, values, color=[_colour(row["method"]) for row in rows], height=0.65)
    axis.errorbar(values, places, xerr=spread, fmt="none", ecolor="#333333", elinewidth=0.8, capsize=2)
    axis.set_yticks(places, labels)
    axis.invert_yaxis()
    for place, row, note in zip(places, rows, notes, strict=True):
        axis.annotate(
            note, (row["seconds_most"], place), xytext=(4, 0), textcoords="offset points", va="center", size=8
        )


def _alone(axis: Any, rows: list[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda row: row["seconds"])
    notes = [f"{r['seconds']:.2f} s, {r['peak_MB']:.0f} MB" for r in rows]
    notes = [
        note if r["method"].startswith("discrete") else f"{note} ({r['times_ours']:.0f}x)"
        for note, r in zip(notes, rows, strict=True)
    ]
    _bars(axis, [row["method"] for row in rows], rows, notes)
    axis.set_xlim(0, 1.5 * max(row["seconds_most"] for row in rows))
    axis.set_xlabel("seconds; beside them peak memory, and how many times ours")
    setting = rows[0]
    axis.set_title(
        f"{setting['steps']} reverse steps alone: {setting['length']} tokens, V = {setting['vocab']:,}",
        loc="left",
        size=9,
    )


def _end_to_end(axis: Any, rows: list[dict[str, Any]]) -> None:
    short = {"backbone forwards alone": "backbone alone", "chain, fp32": "chain"}
    timings = ("seconds", "seconds_least", "seconds_most")
    rows = [row | {name: row[name] / row["batch"] for name in timings} for row in rows]
    labels = [f"{short.get(row['method'], row['method'])}, {row['steps']} steps x {row['batch']}" for row in rows]
    notes = [
        f"{row['seconds']:.1f} s" + ("" if row["method"] == "discrete_distill" else f" ({row['times_ours']:.2f}x)")
        for row in rows
    ]
    _bars(axis, labels, rows, notes)
    axis.set_xlim(0, 1.35 * max(row["seconds_most"] for row in rows))
    axis.set_xlabel("seconds a sequence; beside them how many times ours")
    axis.set_title("Whole samples of a transformer of 12 layers, 768 wide", loc="left", size=9)


def _growth(axis: Any, name: str, rows: list[dict[str, Any]]) -> None:
    for method, label in (("chain, fp32", "published chain"), ("discrete_distill", "discrete_distill")):
        mine = [row for row in rows if row["method"] == method]
        x = [row[name] for row in mine]
        axis.plot(x, [1e3 * row["seconds"] for row in mine], "o-", color=_colour(method), label=label, ms=4, lw=1.5)
        axis.fill_between(
            x,
            [1e3 * row["seconds_least"] for row in mine],
            [1e3 * row["seconds_most"] for row in mine],
            color=_colour(method),
            alpha=0.15,
            lw=0,
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    values = sorted({row[name] for row in rows})
    axis.set_xticks(values, [f"{v // 1024}k" if v >= 1024 else str(v) for v in values])
    axis.minorticks_off()
    axis.set_xlabel(NAMES[name])
    held = {"vocab": "V = {vocab:,}", "batch": "B = {batch}", "steps": "{steps} steps"}
    axis.set_title(
        ", ".join(text.format(**rows[0]) for other, text in held.items() if other != name) + ", L = 256",
        loc="left",
        size=8,
        color="#444444",
    )
    axis.grid(axis="y", color="#eeeeee")
