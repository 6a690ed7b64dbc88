"""Diversity between samples in every report: two columns, and the word "collapsed" in place of a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...evaluation import Estimate, lost_diversity, of_samples_alone
from ...evaluation.checks import exponential

Figures = Mapping[str, Estimate]

COLUMNS = ("two samples agree", "reverse perplexity")
REMEDY = (
    "Take DiDiInstructConfig.recommended(), lower the student's learning rate, draw more paths for an update, or stop "
    "earlier."
)


def figures_of(saved: Mapping[str, Any] | None) -> dict[str, Estimate]:
    """Figures between samples from a results file."""
    return {name: Estimate(*estimate) for name, estimate in (saved or {}).items()}


def between_cells(figures: Figures) -> list[str]:
    """The cells of `COLUMNS`, each a figure and its standard error; empty where it was not measured."""
    return [agreement_cell(figures), reverse_cell(figures)]


def agreement_cell(figures: Figures) -> str:
    """Probability that two samples agree at a position, in percent, with its standard error."""
    found = figures.get("agreement")
    return "" if found is None else f"{found.value:.2%} ± {found.standard_error or 0.0:.2%}"


def reverse_cell(figures: Figures) -> str:
    """Reverse perplexity, with its relative standard error."""
    found = figures.get("reverse_nats")
    return "" if found is None else f"{exponential(found.value):.0f} ± {found.standard_error or 0.0:.1%}"


def collapse_of(figures: Figures, reference: Figures) -> str:
    """The word "collapsed" and the figures that show it, or nothing for samples as diverse as their reference.

    Args:
        figures: of the samples.
        reference: of the samples that they must be as diverse as; empty where it is not known.
    """
    lost = lost_diversity(figures, reference)
    return f"collapsed, {'; '.join(map(str, lost))}" if lost else ""


def collapse_warning(collapse: str, reference: str) -> str:
    """The sentence of a report about samples that collapsed."""
    return (
        f"MODE COLLAPSE: {collapse}. Its samples resemble one another more than those of {reference}: the "
        f"perplexity means nothing. {REMEDY}"
    )


def kept_by_teacher(by_steps: Mapping[int, Figures], steps: int, data: Figures) -> Figures:
    """What a student of some steps must keep: of each figure the worst of its teacher's at as many steps or more.

    A teacher of few steps writes badly, which raises its reverse perplexity too: a student that is no worse has not
    collapsed.

    Args:
        by_steps: figures of the teacher; empty ones are left out.
        steps: of the student; if the teacher has fewer, its most.
        data: figures of data, taken without reverse perplexity where the teacher has none.

    Returns:
        Figures by name.
    """
    known = {count: figures for count, figures in by_steps.items() if figures}
    if not known:
        return of_samples_alone(data)
    kept = [figures for count, figures in known.items() if count >= min(steps, max(known))]
    names = {name for figures in kept for name in figures}
    return {
        name: max((figures[name] for figures in kept if name in figures), key=lambda each: each.value) for name in names
    }


def collapses_of(figures: Mapping[tuple[str, int], Figures], data: Figures) -> dict[tuple[str, int], str]:
    """The word "collapsed" and the figures, of each student whose samples are less diverse than the teacher's at as
    many steps or more.

    Args:
        figures: of each method and number of steps, those of "teacher" among them.
        data: see `kept_by_teacher`.
    """
    of_teacher = {steps: each for (method, steps), each in figures.items() if method == "teacher"}
    found = {
        (method, steps): collapse_of(each, kept_by_teacher(of_teacher, steps, data))
        for (method, steps), each in figures.items()
        if method != "teacher"
    }
    return {key: collapse for key, collapse in found.items() if collapse}
