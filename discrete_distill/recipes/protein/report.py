"""The report of the protein recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ...training import flat_settings, read_metrics
from ..common.diversity_columns import COLUMNS, between_cells, collapse_warning, collapses_of, figures_of
from ..common.report_page import bullets, write_page
from ..common.run import Run
from ..common.tables import markdown_table, number


def write_report(run: Run, results: dict[str, Any]) -> Path:
    """Write ``report.md`` into the folder of a run."""
    history = read_metrics(run.directory)
    trained = f"{history[-1]['step']:.0f} steps in {history[-1]['seconds']:.0f} s" if history else "elsewhere"
    count = results["num_samples"] * len(results["seeds"])
    parts = [
        "# Proteins in few steps",
        "\n".join(
            [
                f"- Command: `{run.command}`",
                f"- Machine: {run.machine}",
                f"- Distillation: {trained}; evaluation: {results['seconds']:.0f} s",
                f"- Judge: {results['judge']}; samples drawn in {results['precision']}, temperature 1",
                f"- Every line: {len(results['seeds'])} seeds, {count} windows of {results['length']} residues, cut at "
                "the ends of proteins",
                "- Sequences: UniProt (CC BY 4.0)",
            ]
        ),
        "## Quality\n\n" + protein_table(results),
        "## Columns\n\n" + LEGEND,
        "## Samples\n\n" + _samples(results),
        "## Limitations\n\n" + bullets(diagnostics(results)),
    ]
    return write_page(run.directory, parts, flat_settings(run.config))


LEGEND = """- perplexity: of a residue under an n-gram model of other proteins.
- entropy: of the residues of a window, nats.
- two samples agree: probability that two windows have the same residue at a position; 1 where all are one sequence.
- reverse perplexity: of a residue of other real proteins under a 3-gram model of the windows; high where these lack
  n-grams of real proteins.
- collapsed, in place of a perplexity: two windows agree more than twice as often as the teacher's at as many steps or
  more, a window shares a tenth more of its 4-grams with the nearest other, or the reverse perplexity is more than 10%
  above theirs, each by more than three standard errors.
- amino acids, dipeptides: Jensen-Shannon divergence of their frequencies from real proteins', in millinats.
- identity: to the nearest training sequence, mean and maximum; 1 is a copy.
- clusters: at identity 0.5, over sequences; 1 where no two are alike.
- low complexity: residues in a window of 12 with an entropy of at most 2.2 bits.
- pLDDT: of ESMFold, where `--fold` names it."""


def protein_table(results: dict[str, Any]) -> str:
    """One line for each way of sampling and number of steps; real proteins first."""
    collapsed, rows = _collapses(results), []
    for line in results["lines"]:
        judged = [number(line["perplexity"], ".2f", "-"), number(line["standard_error"], ".1%")]
        if (line["method"], line["steps"]) in collapsed:
            judged = ["collapsed", ""]
        rows.append(
            [
                line["method"],
                str(line["steps"] or ""),
                str(line.get("network_evaluations", "")),
                *judged,
                number(line["entropy"], ".3f", "-"),
                *between_cells(figures_of(line.get("between_samples"))),
                *_figure_cells(line["figures"]),
                number(line["plddt"], ".1f", "-"),
            ]
        )
    header = ["", "steps", "network evaluations", "perplexity", "±", "entropy", *COLUMNS, "amino acids", "dipeptides"]
    return markdown_table([*header, "identity", "maximum", "clusters", "low complexity", "pLDDT"], rows)


def _figure_cells(figures: dict[str, float] | None) -> list[str]:
    if figures is None:
        return ["no protein", *[""] * 5]
    return [
        f"{1000 * figures['amino_acid_divergence']:.2f}",
        f"{1000 * figures['dipeptide_divergence']:.2f}",
        f"{figures['identity']:.3f}",
        f"{figures['maximum_identity']:.3f}",
        f"{figures['clusters']:.3f}",
        f"{figures['low_complexity']:.1%}",
    ]


def _collapses(results: dict[str, Any]) -> dict[tuple[str, int], str]:
    """See `collapses_of`, of the windows of each way of sampling."""
    figures = {
        (line["method"], line["steps"]): figures_of(line.get("between_samples")) for line in results["lines"][1:]
    }
    return collapses_of(figures, figures_of(results["lines"][0].get("between_samples")))


def diagnostics(results: dict[str, Any]) -> list[str]:
    """What a reader must know. Never empty."""
    found = [
        "Without a structure model these figures measure how protein-like letters are, not whether they fold. "
        "`--fold facebook/esmfold_v1` adds pLDDT where the weights can be had.",
    ]
    found += [
        collapse_warning(f"{method} at {steps} steps: {figures}", "the teacher")
        for (method, steps), figures in _collapses(results).items()
    ]
    real = results["lines"][0]
    for line in results["lines"][1:]:
        if not math.isnan(line["entropy"]) and line["entropy"] < 0.9 * real["entropy"]:
            found.append(
                f"COLLAPSE: the entropy of {line['method']} at {line['steps']} steps is {line['entropy']:.2f} nats, "
                f"that of real proteins {real['entropy']:.2f}."
            )
        figures = line["figures"]
        if figures is not None and figures["identity"] > 0.5:
            found.append(f"{line['method']} at {line['steps']} steps copies its training sequences.")
    return found


def _samples(results: dict[str, Any]) -> str:
    blocks = []
    for line in results["lines"]:
        shown = "\n".join(line["shown"])
        steps = "" if line["steps"] is None else f", {line['steps']} steps"
        blocks.append(f"**{line['method']}{steps}**\n\n```\n{shown}\n```")
    return "\n\n".join(blocks)
