"""The section of a report on which technique matters."""

from __future__ import annotations

import math
from typing import Any

from ...evaluation.checks import exponential
from ..common.tables import markdown_table, number
from .ablation import FULL, TECHNIQUES, published_order, rank_correlation, variant_name
from .readings import collapses, reading_of


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
