"""Two frontiers compared at one entropy: the ratio of perplexities, unless one of them has collapsed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .checks import exponential
from .collapse import CollapseTolerance, LostDiversity, lost_diversity
from .frontier import Frontier


@dataclass(frozen=True, kw_only=True)
class FrontierComparison:
    """Two methods at one entropy.

    Attributes:
        method: the one judged.
        baseline: the one it is compared with.
        entropy: where, in nats.
        log_ratio: nats per token of the method less those of the baseline; negative is better. None out of
            range.
        standard_error: of the log-ratio, over seeds taken as independent; None for one seed or out of range.
        lost: figures of between-sample diversity by which the method has collapsed; empty where it has not.
        note: empty, or why there is no ratio.

    Examples:
        >>> frontier = measure_frontier(lambda *_: data, judge, method="data", temperatures=(1.0,), seeds=(0,))
        >>> comparison = compare_at_entropy(frontier, frontier, entropy=frontier.points[0].entropy)
        >>> comparison.ratio, comparison.collapsed
        (1.0, False)
    """

    method: str
    baseline: str
    entropy: float
    log_ratio: float | None
    standard_error: float | None
    lost: tuple[LostDiversity, ...]
    note: str

    @property
    def ratio(self) -> float | None:
        """Perplexity of the method over that of the baseline; below 1 is better."""
        return None if self.log_ratio is None else exponential(self.log_ratio)

    @property
    def collapsed(self) -> bool:
        """Whether the perplexity was paid for with diversity between samples, so that the ratio means nothing."""
        return bool(self.lost)

    def __str__(self) -> str:
        if self.ratio is None:
            return self.note
        if self.collapsed:
            return f"{self.method}: collapsed, {'; '.join(map(str, self.lost))}"
        error = "one seed" if self.standard_error is None else f"standard error {self.standard_error:.1%}"
        return (
            f"{self.method}: {self.ratio:.3f} times the perplexity of {self.baseline}, "
            f"at an entropy of {self.entropy:.3f} nats ({error})"
        )


def compare_at_entropy(
    method: Frontier,
    baseline: Frontier,
    entropy: float,
    *,
    reference: Frontier | None = None,
    tolerance: CollapseTolerance | None = None,
) -> FrontierComparison:
    """Compare perplexities where both frontiers have the given entropy, and diversity between samples with it.

    Args:
        method: the frontier that is judged.
        baseline: the frontier that its perplexity is compared with.
        entropy: in nats; that of data, as a rule.
        reference: frontier whose diversity the method must keep, as a teacher's at many steps; the baseline by default.
        tolerance: of `lost_diversity`.

    Raises:
        ValueError: if judges, numbers or lengths of samples differ, or the entropy is not finite.

    Examples:
        >>> frontier = measure_frontier(lambda *_: data, judge, method="data", temperatures=(1.0,), seeds=(0,))
        >>> print(compare_at_entropy(frontier, frontier, entropy=5.0))
        data: entropy 5.000 is outside of what all seeds reach (...); add higher temperatures; data: ...
    """
    for what, ours, theirs in (
        ("judges", method.judge, baseline.judge),
        ("numbers of samples", method.num_samples, baseline.num_samples),
        ("lengths", method.length, baseline.length),
    ):
        if ours != theirs:
            raise ValueError(f"frontiers with different {what} cannot be compared: {ours!r} and {theirs!r}")
    ours_read, theirs_read = method.read(entropy), baseline.read(entropy)
    kept = theirs_read.diversity if reference is None else reference.read(entropy).diversity or theirs_read.diversity
    errors = (ours_read.standard_error, theirs_read.standard_error)
    nats = (ours_read.nats_per_token, theirs_read.nats_per_token)
    return FrontierComparison(
        method=method.method,
        baseline=baseline.method,
        entropy=entropy,
        log_ratio=None if nats[0] is None or nats[1] is None else nats[0] - nats[1],
        standard_error=None if errors[0] is None or errors[1] is None else math.hypot(errors[0], errors[1]),
        lost=lost_diversity(ours_read.diversity, kept, tolerance),
        note="; ".join(filter(None, (ours_read.note, theirs_read.note))),
    )
