"""The techniques of DiDi-Instruct, each switched by one field of `DiDiInstructConfig.paper`, and what was published."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..common.distill import DistillConfig

FULL = "didi-paper"


@dataclass(frozen=True, kw_only=True)
class Technique:
    """One technique.

    Attributes:
        name: as the paper's table has it.
        field: of `DiDiInstructConfig`; empty for guided inference, which is a choice of the sampler.
        without: the field's value without the technique.
        published: perplexities at 8 steps before and after it was added to those above it (arXiv 2509.25035, ablation),
            or None where the paper has no line of its own.
    """

    name: str
    field: str
    without: Any
    published: tuple[float, float] | None

    @property
    def published_factor(self) -> float | None:
        """By how much leaving it out raises the perplexity: before over after."""
        return None if self.published is None else self.published[0] / self.published[1]


TECHNIQUES = (
    Technique(name="score decomposition", field="score_decomposition", without=False, published=(803.9, 667.8)),
    Technique(name="coupled time", field="coupled_time", without=False, published=(667.8, 101.0)),
    Technique(name="omega", field="omega", without="constant", published=(101.0, 95.0)),
    Technique(name="pi", field="tau_shape", without=2.0, published=(95.0, 92.1)),
    Technique(name="regularisation", field="kl_coefficient", without=0.0, published=(92.1, 88.3)),
    Technique(name="entropy bonus", field="entropy_coefficient", without=0.0, published=None),
    Technique(name="guided inference", field="", without=None, published=(88.3, 62.2)),
)


def variant_name(technique: Technique) -> str:
    """Of the method without it, fit for a folder."""
    return "without-" + technique.name.replace(" ", "-")


def variants(full: DistillConfig) -> dict[str, DistillConfig]:
    """The whole method and, for every technique that is trained, the method without it."""
    made = {FULL: full}
    for technique in TECHNIQUES:
        if technique.field:
            published: Any = full.method
            method = replace(published, **{technique.field: technique.without})
            made[variant_name(technique)] = replace(full, method=method, discriminator=True)
    return made


def published_order() -> list[str]:
    """Techniques by falling published factor."""
    known = [technique for technique in TECHNIQUES if technique.published_factor is not None]
    return [technique.name for technique in sorted(known, key=lambda each: -(each.published_factor or 0.0))]


def rank_correlation(first: list[str], second: list[str]) -> float | None:
    """Spearman's, of two orders of the same names; None for fewer than two."""
    if len(first) < 2 or set(first) != set(second):
        return None
    count = len(first)
    squares = sum((first.index(name) - second.index(name)) ** 2 for name in first)
    return 1.0 - 6.0 * squares / (count * (count**2 - 1))
