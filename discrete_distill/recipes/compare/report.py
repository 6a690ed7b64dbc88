"""The report of a comparison: perplexity at the entropy of data by steps, diversity, costs, and what to worry about."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ...evaluation import (
    Frontier,
    FrontierReading,
    StepCurve,
    lost_diversity,
    of_samples_alone,
    plot_frontier,
    plot_perplexity_by_steps,
)
from ...evaluation.checks import exponential
from ..common.diversity_columns import COLUMNS, between_cells, collapse_warning, collapses_of, figures_of
from ..common.printing import quoted
from ..tables import markdown_table, number, span
from ..text.report import REPORT_FILE, flatten
from ..text.tokenizer import TextTokenizer
from .ablation import FULL, TECHNIQUES, published_order, rank_correlation, variant_name

Line = dict[str, Any]


def write_comparison(
    results: dict[str, Any],
    tokenizer: TextTokenizer,
    directory: Path,
    *,
    command: str,
    machine: str,
    settings: dict[str, Any],
) -> Path:
    """Write ``report.md``, ``frontier.png`` and ``steps.png`` into ``directory``.

    Args:
        results: what the evaluation wrote.
        tokenizer: shows samples as text.
        directory: where.
        command: that made it.
        machine: that ran it.
        settings: every field, to be reproduced from.
    """
    title = "Ablation of DiDi-Instruct" if results["ablation"] else "Few-step language models, compared"
    _draw_plots(results, directory, title)
    parts = [
        f"# {title}",
        _provenance(results, command, machine),
        comparison_tables(results),
        "![Perplexity at the entropy of data against steps](steps.png)",
        f"![Perplexity against entropy at {results['frontier_steps']} steps](frontier.png)",
        "## Every reading\n\n" + readings_table(results),
        "## Diversity\n\n" + diversity_table(results),
        "## Cost of training\n\n" + training_table(results),
        "## Cost of sampling\n\n" + speed_table(results),
        "## Likelihood\n\n" + likelihood_table(results),
        "## Samples\n\n" + _samples(results, tokenizer),
        "## Limitations\n\n" + "\n".join(f"- {line}" for line in diagnostics(results)),
        "## Settings\n\n```\n" + "\n".join(flatten(settings)) + "\n```",
    ]
    path = directory / REPORT_FILE
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def comparison_tables(results: dict[str, Any]) -> str:
    """What the report is read for: one table for each judge, and the ablation's ranking."""
    parts = []
    for index, judge in enumerate(results["judges"]):
        data = results["data"]
        parts.append(
            f"## At equal entropy, judge {judge}\n\n"
            f"Perplexity at {data['entropy']:.3f} nats, the entropy of held-out text, whose own perplexity is "
            f"{exponential(data['nats_per_token'][judge]):.1f}; ± one standard error over "
            f"{len(results['seeds'])} seeds. A dash: not measured; out of range: no temperature tried has "
            "that entropy; collapsed: samples are more alike than the teacher's at as many steps or more.\n\n"
            + perplexity_table(results, index)
        )
    if results["ablation"]:
        parts.append("## Which technique matters\n\n" + ablation_table(results))
    return "\n\n".join(parts)


def reading_of(line: Line, judge: int, entropy: float) -> FrontierReading:
    """The line's frontier under one judge, read at an entropy."""
    return Frontier.from_dict(line["frontiers"][judge]).read(entropy)


def collapses(results: dict[str, Any], judge: int = 0) -> dict[tuple[str, int], str]:
    """What is said of each student and number of steps whose samples are less diverse than the teacher's at as many
    steps or more (than data, where the teacher's do not reach their entropy): "collapsed" and the figures."""
    figures = {
        (line["method"], line["steps"]): reading_of(line, judge, results["data"]["entropy"]).diversity
        for line in results["lines"]
    }
    return collapses_of(figures, figures_of(results["data"].get("between_samples")))


def perplexity_table(results: dict[str, Any], judge: int = 0) -> str:
    """One row a method, one column a number of steps."""
    columns = sorted({line["steps"] for line in results["lines"]})
    names = list(dict.fromkeys(line["method"] for line in results["lines"]))
    cells = {
        (line["method"], line["steps"]): _shown(reading_of(line, judge, results["data"]["entropy"]))
        for line in results["lines"]
    } | collapses(results, judge)
    rows = [[name, *(cells.get((name, steps), "-") for steps in columns)] for name in names]
    return markdown_table(["steps", *map(str, columns)], rows)


def _shown(reading: FrontierReading) -> str:
    if reading.perplexity is None:
        return "out of range"
    error = number(reading.standard_error, ".1%")
    return f"{reading.perplexity:.1f}" + (f" ± {error}" if error else "")


def readings_table(results: dict[str, Any]) -> str:
    """With spread over seeds, network evaluations, diversity between samples and the entropies that were reached."""
    data = results["data"]
    between = between_cells(figures_of(data.get("between_samples")))
    rows = [["data", *[""] * 6, *between, f"{data['entropy']:.3f}"]]
    for line in results["lines"]:
        for saved in line["frontiers"]:
            frontier = Frontier.from_dict(saved)
            reading = frontier.read(data["entropy"])
            rows.append(
                [
                    line["method"],
                    str(line["steps"]),
                    str(line["network_evaluations"]),
                    frontier.judge,
                    number(reading.perplexity, ".1f", "out of range"),
                    number(reading.standard_error, ".1%"),
                    number(reading.spread, ".1%"),
                    *between_cells(reading.diversity),
                    span(mean.entropy for mean in frontier.means()),
                ]
            )
    header = ["", "steps", "network evaluations", "judge", "perplexity", "±", "spread over seeds"]
    return markdown_table([*header, *COLUMNS, "entropies measured"], rows)


def diversity_table(results: dict[str, Any]) -> str:
    """At the temperature whose entropy is nearest to the data's; data beside it."""
    count = results["num_samples"] * len(results["seeds"])
    rows = [["data", "", "", *_set_cells(results["data"]["set"])]]
    rows += [
        [line["method"], str(line["steps"]), f"{line['temperature']:g}", *_set_cells(line)] for line in results["lines"]
    ]
    header = ["", "steps", "temperature", "entropy", "corpus entropy", "distinct-2", "repeated 3-grams"]
    return (
        f"Sets of {count} samples of {results['length']} tokens, at the measured temperature whose entropy is nearest "
        "to that of the text. MAUVE is against held-out text, in the features of the first judge; data is other "
        "held-out text, the most that these sets can reach.\n\n"
        + markdown_table([*header, "shared 4-grams", "self-BLEU", "MAUVE"], rows)
    )


def _set_cells(line: Line) -> list[str]:
    diversity = line["diversity"]
    distinct, repeated, shared = (
        {int(order): value for order, value in diversity[name].items()}
        for name in ("distinct", "repetition", "overlap")
    )
    return [
        f"{diversity['entropy']:.3f}",
        f"{diversity['corpus_entropy']:.3f}",
        f"{distinct[2]:.3f}",
        f"{repeated[3]:.2%}",
        f"{shared[4]:.2%}",
        f"{line['self_bleu']:.3f}",
        number(line["mauve"], ".3f", "-"),
    ]


def training_table(results: dict[str, Any]) -> str:
    """Steps, seconds and network evaluations of each method, averaged over its trainings."""
    rows = []
    for name, costs in results["training"].items():
        mean = {key: sum(cost[key] for cost in costs) / len(costs) for key in costs[0]}
        size = results["parameters"].get(name)
        rows.append(
            [
                name,
                str(len(costs)),
                f"{mean['steps']:.0f}",
                f"{mean['seconds']:.0f}",
                number(mean["guide_seconds"] or None, ".0f"),
                f"{mean['network_evaluations']:.0f}",
                "" if size is None else f"{size / 1e6:.2f}M",
            ]
        )
    return (
        f"Budget: {results['amount']:g} {results['budget'].replace('_', ' ')} for each method, planned from a few "
        "tried steps. An evaluation is one pass of one sequence through one network; a backward pass counts as two. "
        "A guide for RGAS is fitted to the finished student, on top.\n\n"
        + markdown_table(
            ["", "trainings", "steps", "seconds", "guide, seconds", "network evaluations", "parameters"], rows
        )
    )


def speed_table(results: dict[str, Any]) -> str:
    """Tokens per second of a batch, and seconds that a single sequence takes."""
    rows = [
        [
            line["method"],
            f"{line['tokens_per_second']:.0f}",
            span(line["spread"], ".0f"),
            str(line["batch"]),
            f"{1000 * line['latency']:.0f} ms",
        ]
        for line in results["speed"]
    ]
    return markdown_table(["", "tokens per second", "quartiles", "batch", "latency at batch 1"], rows)


def likelihood_table(results: dict[str, Any]) -> str:
    """Upper bounds for denoisers, values for autoregressive models."""
    rows = [
        [
            line["method"],
            line["text"],
            f"{exponential(line['nats_per_token']):.1f}",
            number(line["standard_error"], ".1%"),
            "upper bound" if line["bound"] else "exact",
        ]
        for line in results["likelihood"]
    ]
    return markdown_table(["", "text", "perplexity", "±", ""], rows)


def ablation_factors(results: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    """Of each technique: log of the perplexity without it over that with it, at the entropy of data, and its standard
    error; techniques whose curves do not reach that entropy, or of which a side collapsed, are left out."""
    steps, entropy = results["frontier_steps"], results["data"]["entropy"]
    collapsed = collapses(results)
    readings = {
        line["method"]: reading_of(line, 0, entropy)
        for line in results["lines"]
        if line["steps"] == steps and (line["method"], steps) not in collapsed
    }
    factors: dict[str, tuple[float, float | None]] = {}
    for technique in TECHNIQUES:
        with_it, without = readings.get(FULL), readings.get(variant_name(technique))
        if not technique.field:
            with_it, without = readings.get(f"{FULL} + RGAS"), readings.get(FULL)
        if with_it is None or without is None or with_it.nats_per_token is None or without.nats_per_token is None:
            continue
        errors = (with_it.standard_error, without.standard_error)
        error = None if errors[0] is None or errors[1] is None else math.hypot(errors[0], errors[1])
        factors[technique.name] = (without.nats_per_token - with_it.nats_per_token, error)
    return factors


def ablation_table(results: dict[str, Any]) -> str:
    """Ours beside the published: what leaving one technique out costs, and whether the order holds."""
    factors, collapsed, steps = ablation_factors(results), collapses(results), results["frontier_steps"]
    rows = []
    for technique in TECHNIQUES:
        factor, error = factors.get(technique.name, (None, None))
        without = variant_name(technique) if technique.field else FULL
        rows.append(
            [
                technique.name,
                technique.field or "sampler",
                str(technique.without) if technique.field else "plain",
                collapsed.get((without, steps), "-") if factor is None else f"{exponential(factor):.3f}",
                number(error, ".1%"),
                number(technique.published_factor, ".3f", "-"),
            ]
        )
    table = (
        f"Factor in perplexity at {steps} steps and equal entropy when one technique is left out "
        "of the whole method. Published: the factor when it was added to those above it (arXiv 2509.25035, 8 steps, "
        "perplexity not at equal entropy).\n\n"
        + markdown_table(["technique", "field", "without it", "factor", "±", "published"], rows)
    )
    ours = sorted((name for name in published_order() if name in factors), key=lambda name: -factors[name][0])
    theirs = [name for name in published_order() if name in factors]
    correlation = rank_correlation(ours, theirs)
    if correlation is not None:
        table += (
            f"\n\nOurs by importance: {', '.join(ours)}. Published: {', '.join(theirs)}. "
            f"Rank correlation {correlation:+.2f}; techniques whose factors differ by less than their errors have no "
            "order."
        )
    return table


def diagnostics(results: dict[str, Any]) -> list[str]:
    """What a reader must know before believing a figure. Never empty."""
    entropy = results["data"]["entropy"]
    found = [reading.note for line in results["lines"] for reading in [reading_of(line, 0, entropy)] if reading.note]
    found += [
        collapse_warning(f"{method}, {steps} steps: {said}", "the teacher")
        for (method, steps), said in collapses(results).items()
    ]
    trainings = len(results["train_seeds"])
    if trainings < 3:
        found.append(
            f"{trainings} training of each method: the errors are those of sampling, and another training seed may "
            "move a line by more. --train-seeds 0 1 2 measures it."
        )
    if any(name == "ar" for name in results["training"]):
        found.append(
            f"The autoregressive model was trained from nothing within {results['autoregressive_share']:g} budget(s); "
            "students start from a teacher whose training is not counted. It is of the judge's own architecture, which "
            "a judge may favour."
        )
    count = results["num_samples"] * len(results["seeds"])
    if count < 1000:
        found.append(f"MAUVE, distinct-n and self-BLEU of {count} samples: compare them with the data's line only.")
    for line in results["lines"]:
        real = results["data"]["set"]["diversity"]["corpus_entropy"]
        change = line["diversity"]["corpus_entropy"] / real - 1.0
        if change < -0.1:
            found.append(
                f"COLLAPSE: the corpus entropy of {line['method']} at {line['steps']} steps is {change:+.0%} against "
                "data."
            )
    return found


def _provenance(results: dict[str, Any], command: str, machine: str) -> str:
    trained = sum(cost["seconds"] for costs in results["training"].values() for cost in costs)
    lines = [
        f"- Command: `{command}`",
        f"- Machine: {machine}",
        f"- Training: {trained:.0f} s; evaluation: {results['seconds']:.0f} s",
        f"- Judges: {', '.join(results['judges'])}; samples drawn in {results['precision']}",
        f"- Every figure: {len(results['seeds'])} seeds of {results['num_samples']} samples, "
        f"{len(results['train_seeds'])} training(s) of each method",
    ]
    return "\n".join(lines)


def _samples(results: dict[str, Any], tokenizer: TextTokenizer) -> str:
    blocks = []
    for line in results["lines"]:
        if line["steps"] not in (results["frontier_steps"], results["length"]):
            continue
        texts = "\n\n".join(quoted(tokenizer.decode(ids)) for ids in line["samples"][:1])
        blocks.append(f"**{line['method']}, {line['steps']} steps**\n\n{texts}")
    return "\n\n".join(blocks)


def step_curves(results: dict[str, Any], judge: int = 0) -> list[StepCurve]:
    """Log-perplexity at the entropy of data against steps, one curve a method."""
    curves, data = [], of_samples_alone(figures_of(results["data"].get("between_samples")))
    for name in dict.fromkeys(line["method"] for line in results["lines"]):
        lines = [line for line in results["lines"] if line["method"] == name]
        readings = [reading_of(line, judge, results["data"]["entropy"]) for line in lines]
        curves.append(
            StepCurve(
                label=name,
                steps=tuple(line["steps"] for line in lines),
                nats_per_token=tuple(reading.nats_per_token for reading in readings),
                standard_errors=tuple(reading.standard_error for reading in readings),
                less_diverse=tuple(bool(lost_diversity(reading.diversity, data)) for reading in readings),
            )
        )
    return curves


def _draw_plots(results: dict[str, Any], directory: Path, title: str) -> None:
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
