"""The techniques of DiDi-Instruct, each switched by one field of `DiDiInstructConfig.paper`, and what was published."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...distillation.methods import with_changes
from ...process import BetaTime
from ..common.distill_config import DistillConfig

FULL = "didi-paper"


@dataclass(frozen=True, kw_only=True)
class Technique:
    """One technique.

    Attributes:
        name: in tables and folders; the paper calls the time weight omega, and the distribution of path times pi.
        field: dotted name in `DiDiInstructConfig`; empty for guided inference, which is a choice of the sampler.
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
    Technique(name="score decomposition", field="paths.num_steps", without=(1,), published=(803.9, 667.8)),
    Technique(
        name="coupled time",
        field="credit.corruption.time_distribution",
        without=BetaTime(0.02, 0.98, a=1.0, b=1.0),
        published=(667.8, 101.0),
    ),
    Technique(name="time weight", field="credit.corruption.time_weight", without=None, published=(101.0, 95.0)),
    Technique(
        name="path times",
        field="paths.time_distribution",
        without=BetaTime(0.02, 0.98, a=2.0, b=2.0),
        published=(95.0, 92.1),
    ),
    Technique(name="regularisation", field="regularization.path_kl.coefficient", without=0.0, published=(92.1, 88.3)),
    Technique(name="entropy bonus", field="regularization.entropy_coefficient", without=0.0, published=None),
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
            changes = technique.without
            for name in reversed(technique.field.split(".")):
                changes = {name: changes}
            method = with_changes(full.method, **changes)
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
