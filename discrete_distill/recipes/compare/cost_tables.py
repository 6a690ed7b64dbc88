"""Tables of a comparison beside perplexity: diversity, costs of training and sampling, likelihoods."""

from __future__ import annotations

from typing import Any

from ...evaluation.checks import exponential
from ..common.tables import markdown_table, number, span
from .readings import Line


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
                number(mean["discriminator_seconds"] or None, ".0f"),
                f"{mean['network_evaluations']:.0f}",
                "" if size is None else f"{size / 1e6:.2f}M",
            ]
        )
    return (
        f"Budget: {results['amount']:g} {results['budget'].replace('_', ' ')} for each method, planned from a few "
        "tried steps. An evaluation is one pass of one sequence through one network; a backward pass counts as two. "
        "A discriminator for RGAS is fitted to the finished student, on top.\n\n"
        + markdown_table(
            ["", "trainings", "steps", "seconds", "discriminator, seconds", "network evaluations", "parameters"], rows
        )
    )


def speed_table(results: dict[str, Any]) -> str:
    """Tokens per second of a batch, and seconds that a single sequence takes."""
    if not results["speed"]:
        return "Not measured."
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
