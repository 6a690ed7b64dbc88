"""The report of a comparison: perplexity at the entropy of data by steps, diversity, costs, and limitations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...evaluation import Frontier, FrontierReading
from ...evaluation.checks import exponential
from ...training import flat_settings
from ..common.diversity_columns import COLUMNS, between_cells, collapse_warning, figures_of
from ..common.printing import quoted
from ..common.report_page import bullets, write_page
from ..common.run import Run
from ..common.tables import markdown_table, number, span
from ..common.tokenizer import TextTokenizer
from .ablation_report import ablation_table
from .cost_tables import diversity_table, likelihood_table, speed_table, training_table
from .plots import draw_plots
from .readings import collapses, reading_of


def write_comparison(run: Run, results: dict[str, Any], answers: Sequence[str] = ()) -> Path:
    """Write ``report.md``, ``frontier.png`` and ``steps.png`` into the folder of a run.

    Args:
        run: of the comparison.
        results: of its evaluation.
        answers: what the report says of each task.
    """
    title = "Ablation of DiDi-Instruct" if results["ablation"] else "Few-step language models, compared"
    draw_plots(results, run.directory, title)
    parts = [
        f"# {title}",
        _provenance(results, run),
        comparison_tables(results),
        "![Perplexity at the entropy of data against steps](steps.png)",
        f"![Perplexity against entropy at {results['frontier_steps']} steps](frontier.png)",
        *answers,
        "## Every reading\n\n" + readings_table(results),
        "## Diversity\n\n" + diversity_table(results),
        "## Cost of training\n\n" + training_table(results),
        "## Cost of sampling\n\n" + speed_table(results),
        "## Likelihood\n\n" + likelihood_table(results),
        "## Samples\n\n" + _samples(results, run.tokenizer),
        "## Limitations\n\n" + bullets(diagnostics(results)),
    ]
    return write_page(run.directory, parts, flat_settings(run.config))


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


def diagnostics(results: dict[str, Any]) -> list[str]:
    """What a reader must know before believing a figure. Never empty."""
    entropy = results["data"]["entropy"]
    found = [reading.note for line in results["lines"] for reading in [reading_of(line, 0, entropy)] if reading.note]
    found += [
        collapse_warning(f"{method}, {steps} steps: {collapse}", "the teacher")
        for (method, steps), collapse in collapses(results).items()
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


def _provenance(results: dict[str, Any], run: Run) -> str:
    trained = sum(cost["seconds"] for costs in results["training"].values() for cost in costs)
    lines = [
        f"- Command: `{run.command}`",
        f"- Machine: {run.machine}",
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
