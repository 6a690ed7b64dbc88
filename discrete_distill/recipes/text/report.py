"""The report: what was run, what it cost, tables, plots, samples, and limitations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ...evaluation import Frontier, FrontierComparison, StepCurve, compare_at_entropy, lost_diversity, of_samples_alone
from ...evaluation.checks import exponential
from ...training import explain, flat_settings, read_metrics
from ..common.discriminator import METRICS_FOLDER
from ..common.diversity_columns import COLUMNS, agreement_cell, between_cells, collapse_warning, figures_of
from ..common.printing import quoted
from ..common.report_page import bullets, write_page
from ..common.run import Run
from ..common.tables import markdown_table, number, span
from ..common.tokenizer import TextTokenizer


def write_report(run: Run, results: dict[str, Any]) -> Path:
    """Write ``report.md`` and its plots into the folder of a run."""
    history, discriminator_history = read_metrics(run.directory), read_metrics(run.directory / METRICS_FOLDER)
    title, directory, tokenizer = f"Distillation: {run.config.name}", run.directory, run.tokenizer
    command, machine = results.get("command", run.command), results.get("machine", run.machine)
    frontiers = [Frontier.from_dict(saved) for saved in results["frontiers"]]
    _draw_plots(results, frontiers, directory, title)
    parts = [
        f"# {title}",
        _provenance(results, history, discriminator_history, command, machine),
        "## In short\n\n" + "\n".join(headline(results, frontiers)),
        "## At equal entropy\n\n" + frontier_table(results, frontiers),
        "![Perplexity against entropy](frontier.png)",
        "## By steps, at temperature 1\n\n" + steps_table(results),
        "![Perplexity against steps](steps.png)",
        "## Cost of sampling\n\n" + _speed_table(results),
        "## Samples\n\n" + _samples(results, tokenizer),
        "## Limitations\n\n" + bullets(diagnostics(results, history, discriminator_history)),
    ]
    return write_page(directory, parts, results.get("settings", flat_settings(run.config)))


def _provenance(
    results: dict[str, Any],
    history: list[dict[str, float]],
    discriminator_history: list[dict[str, float]],
    command: str,
    machine: str,
) -> str:
    trained = history[-1]["seconds"] if history else math.nan
    steps = int(history[-1]["step"]) if history else 0
    line = "; discriminator: {step:.0f} steps in {seconds:.0f} s"
    fitted = line.format(**discriminator_history[-1]) if discriminator_history else ""
    lines = [
        f"- Command: `{command}`",
        f"- Machine: {machine}",
        f"- Distillation: {steps} steps in {trained:.0f} s{fitted}; evaluation: {results['seconds']:.0f} s",
        f"- Judge: {results['judge']}; samples drawn in {results['precision']}",
        f"- Every figure: {len(results['seeds'])} seeds of {results['num_samples']} samples; ± is one standard error",
    ]
    return "\n".join(lines)


def _data_entropy(results: dict[str, Any]) -> float:
    return results["data"]["diversity"]["entropy"]


def comparisons(results: dict[str, Any], frontiers: list[Frontier]) -> list[FrontierComparison]:
    """Every other curve against the first teacher curve, at the entropy of held-out text. Diversity between samples is
    held against the last teacher curve, that of its most steps."""
    teachers = [frontier for frontier in frontiers if frontier.method.startswith("teacher,")]
    baseline, reference = teachers[0], teachers[-1]
    return [
        compare_at_entropy(frontier, baseline, _data_entropy(results), reference=reference)
        for frontier in frontiers
        if frontier is not baseline
    ]


def headline(results: dict[str, Any], frontiers: list[Frontier]) -> list[str]:
    """One line for each comparison."""
    return [f"- {comparison}" for comparison in comparisons(results, frontiers)]


def frontier_table(results: dict[str, Any], frontiers: list[Frontier]) -> str:
    """Each curve read at the entropy of held-out text."""
    data, entropy = results["data"], _data_entropy(results)
    text = f"{exponential(data['nats_per_token']):.1f}"
    rows = [["held-out text", text, "", *between_cells(figures_of(data.get("between_samples"))), f"{entropy:.3f}"]]
    for frontier in frontiers:
        reading = frontier.read(entropy)
        measured = span(mean.entropy for mean in frontier.means())
        if reading.perplexity is None:
            rows.append([frontier.method, "out of range", "", "", "", measured])
        else:
            error = number(reading.standard_error, ".1%")
            cells = between_cells(reading.diversity)
            rows.append([frontier.method, f"{reading.perplexity:.1f}", error, *cells, measured])
    header = ["", "perplexity at that entropy", "±", *COLUMNS, "measured range of entropy"]
    return (
        f"Held-out text has an entropy of {entropy:.3f} nats and, to this judge, a perplexity of {text}.\n\n"
        + markdown_table(header, rows)
    )


def summary_table(results: dict[str, Any], frontiers: list[Frontier]) -> str:
    """What fits into a terminal of 80 columns: each curve at the entropy of held-out text."""
    data, entropy = results["data"], _data_entropy(results)
    rows = [
        [
            "held-out text",
            f"{exponential(data['nats_per_token']):.1f}",
            agreement_cell(figures_of(data.get("between_samples"))),
        ]
    ]
    for frontier in frontiers:
        reading = frontier.read(entropy)
        if reading.perplexity is None:
            rows.append([frontier.method, "out of range", ""])
        else:
            error = "" if reading.standard_error is None else f" ± {reading.standard_error:.1%}"
            rows.append([frontier.method, f"{reading.perplexity:.1f}{error}", agreement_cell(reading.diversity)])
    return markdown_table(["", f"perplexity at {entropy:.2f} nats", "two samples agree"], rows)


def steps_table(results: dict[str, Any]) -> str:
    """The table of `by_steps`, one line for each method and number of steps. A figure that a single sample, or a
    sequence shorter than the n-gram, does not have is left empty."""
    rows = []
    for line in results["by_steps"]:
        diversity = line["diversity"]
        distinct, repetition = _by_order(diversity["distinct"]), _by_order(diversity["repetition"])
        rows.append(
            [
                line["method"],
                str(line["steps"]),
                str(line["network_evaluations"]),
                f"{line['perplexity']:.1f}",
                number(line["standard_error"], ".1%"),
                f"{diversity['entropy']:.3f}",
                f"{diversity['corpus_entropy']:.3f}",
                number(distinct.get(2), ".3f"),
                number(repetition.get(3), ".2%"),
                agreement_cell(figures_of(line.get("between_samples"))),
            ]
        )
    header = ["", "steps", "network evaluations", "perplexity", "±", "entropy", "corpus entropy", "distinct-2"]
    return markdown_table([*header, "repeated 3-grams", "two samples agree"], rows)


def _by_order(figures: dict[Any, float]) -> dict[int, float]:
    return {int(order): value for order, value in figures.items()}


def _speed_table(results: dict[str, Any]) -> str:
    rows = [
        [line["method"], f"{line['tokens_per_second']:.0f}", span(line["spread"], ".0f"), str(line["batch"])]
        for line in results["speed"]
    ]
    return markdown_table(["", "tokens per second", "quartiles", "batch"], rows)


def _samples(results: dict[str, Any], tokenizer: TextTokenizer) -> str:
    blocks = []
    for name, sequences in results["samples"].items():
        texts = "\n\n".join(quoted(tokenizer.decode(ids)) for ids in sequences)
        blocks.append(f"**{name}**\n\n{texts}")
    return "\n\n".join(blocks)


def diagnostics(
    results: dict[str, Any],
    history: list[dict[str, float]],
    discriminator_history: list[dict[str, float]] | None = None,
) -> list[str]:
    """Signs of collapse, of noise, and of a comparison that is not one. Never empty."""
    found = [
        *_entropy_diagnostics(results),
        *_training_diagnostics(history),
        *explain(discriminator_history or []).values(),
    ]
    frontiers = [Frontier.from_dict(saved) for saved in results["frontiers"]]
    for comparison in comparisons(results, frontiers):
        found += [comparison.note] * bool(comparison.note)
        if comparison.collapsed:
            found.append(collapse_warning(str(comparison), "its teacher"))
    return found or [
        "No sign of collapse: the entropies of samples and of the whole set stay within 2% of the teacher's, samples "
        "resemble one another no more than the teacher's, and no update was skipped.",
    ]


def _entropy_diagnostics(results: dict[str, Any]) -> list[str]:
    lines = {(line["method"], line["steps"]): line["diversity"] for line in results["by_steps"]}
    found = []
    for (method, steps), diversity in lines.items():
        teacher = lines.get(("teacher", steps))
        if method == "teacher" or teacher is None:
            continue
        for kind in ("entropy", "corpus_entropy"):
            if not teacher[kind]:
                found.append(
                    f"The {kind.replace('_', ' ')} of the teacher at {steps} steps is 0: a sample repeats one token."
                )
                continue
            change = diversity[kind] / teacher[kind] - 1.0
            if abs(change) > 0.1:
                found.append(
                    f"COLLAPSE: the {kind.replace('_', ' ')} of the {method} at {steps} steps is {change:+.0%} against "
                    "the teacher's; its perplexity means nothing. Lower the learning rate, or raise "
                    "--distill.method.regularization.data-kl.coefficient."
                )
            elif abs(change) > 0.02:
                found.append(
                    f"The {kind.replace('_', ' ')} of the {method} at {steps} steps is {change:+.1%} against the "
                    "teacher's: compare at equal entropy only."
                )
    return found


def _training_diagnostics(history: list[dict[str, float]]) -> list[str]:
    if not history:
        return ["There are no training metrics: the student was not made by this run."]
    return list(explain(history).values())


def step_curves(results: dict[str, Any]) -> list[StepCurve]:
    """Log-perplexity against steps, one curve for each method."""
    methods = list(dict.fromkeys(line["method"] for line in results["by_steps"]))
    between_data = of_samples_alone(figures_of(results["data"].get("between_samples")))
    curves = []
    for method in methods:
        lines = [line for line in results["by_steps"] if line["method"] == method]
        curves.append(
            StepCurve(
                label=method,
                steps=tuple(line["steps"] for line in lines),
                nats_per_token=tuple(line["nats_per_token"] for line in lines),
                standard_errors=tuple(line["standard_error"] for line in lines),
                less_diverse=tuple(
                    bool(lost_diversity(figures_of(line.get("between_samples")), between_data)) for line in lines
                ),
            )
        )
    return curves


def _draw_plots(results: dict[str, Any], frontiers: list[Frontier], directory: Path, title: str) -> None:
    from ...evaluation import plot_frontier, plot_perplexity_by_steps

    plot_frontier(
        frontiers,
        directory / "frontier.png",
        data_entropy=_data_entropy(results),
        data_diversity=figures_of(results["data"].get("between_samples")),
        title=title,
    )
    plot_perplexity_by_steps(
        step_curves(results),
        directory / "steps.png",
        judge=results["judge"],
        title=title,
        data_perplexity=exponential(results["data"]["nats_per_token"]),
        note="temperature 1; entropies differ, see the table",
    )
