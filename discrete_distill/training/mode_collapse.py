"""Mode collapse while training: samples of the student that grow alike, read from the log, without a judge.

The metrics come from the student paths of each update, agreement of two samples above all. The last lines of the log
are compared with the first, at which the student is still its teacher.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..checks import check_count, check_number
from ..distillation.methods.diversity_control import odds
from ..distributed.processes import agree
from .metrics import MetricWindow, on_the_host

Line = Mapping[str, float]

AGREEMENT, FIRST_ENTROPY = "sample_agreement", "first_entropy"
NOISE_LINES = 20
REMEDY = (
    "take DiDiInstructConfig.recommended() (regularization.data_kl with its diversity_tolerance), lower the "
    "student's learning rate, draw more paths for an update, or fit the auxiliary more often (log_ratio.updates)"
)


@dataclass(frozen=True, kw_only=True)
class CollapseRule:
    """When samples of a batch count as collapsed: beyond a factor *and* beyond the noise of the log.

    Means over the last ``updates`` are compared with those over the first. The factor is on the odds ``a / (1 - a)`` of
    two samples' agreement ``a``, so that it can be reached from any teacher. The noise of a line is taken from the
    differences of neighbours, of the first and of the last twenty lines, to which a slow trend adds little. Where no
    agreement is logged (one group of paths that branch), the entropy of the first revealed tokens stands for it.

    Args:
        agreement_factor: of the odds of agreement, over those of the first lines.
        entropy_share: of the first entropy, below which it has collapsed.
        errors: standard errors of the difference.
        updates: of the two windows that are compared; each has one line of the log at least, the last one two.

    Raises:
        ValueError: for a factor of 1 or below, a share outside ``(0, 1)``, a negative number of errors, or fewer than
            one update.

    Examples:
        >>> rule = CollapseRule(agreement_factor=3.0)  # Odds of 1 to 4 become 1 to 1.
        >>> rule.is_met("sample_agreement", first=0.2, last=0.5, error=0.01)
        True
    """

    agreement_factor: float = 3.0
    entropy_share: float = 0.5
    errors: float = 4.0
    updates: int = 10

    def __post_init__(self) -> None:
        check_number("agreement_factor", self.agreement_factor, exclusive_minimum=1.0)
        check_number("entropy_share", self.entropy_share, exclusive_minimum=0.0, exclusive_maximum=1.0)
        check_number("errors", self.errors, minimum=0.0)
        check_count("updates", self.updates)

    def is_met(self, name: str, first: float, last: float, error: float) -> bool:
        """Whether a figure has gone from ``first`` to ``last``, with a standard error of the difference, too far."""
        if name == FIRST_ENTROPY:
            return last < self.entropy_share * first and first - last > self.errors * error
        return odds(last) > self.agreement_factor * odds(first) and last - first > self.errors * error


@dataclass(frozen=True, kw_only=True)
class ModeCollapse:
    """The sign at the last line of a log.

    Attributes:
        since: step of the first line from which on the sign has stood.
        step: of the last line.
        changes: first and last mean of each figure that shows it, by name.

    Examples:
        >>> agreements = [0.10, 0.11, 0.10, 0.12, 0.50, 0.51, 0.50]
        >>> history = [{"step": 10.0 * index, "sample_agreement": each} for index, each in enumerate(agreements)]
        >>> sign = mode_collapse(history, CollapseRule(errors=0.0))
        >>> sign.since, sign.step
        (40.0, 60.0)
    """

    since: float
    step: float
    changes: dict[str, tuple[float, float]]

    @property
    def updates(self) -> int:
        """Steps for which the sign has stood."""
        return int(self.step - self.since)

    @property
    def is_new(self) -> bool:
        """Whether the last line is the first that shows it."""
        return self.step == self.since

    def __str__(self) -> str:
        changes = "; ".join(DESCRIPTIONS[name].format(*change) for name, change in self.changes.items())
        return f"MODE COLLAPSE: the samples of a batch become one text with variations ({changes}): {REMEDY}"


DESCRIPTIONS = {
    AGREEMENT: "two of them agree at {1:.1%} of their positions, at first {0:.1%}",
    FIRST_ENTROPY: "entropy of the first revealed tokens {1:.2f} nats, at first {0:.2f}",
    "log_ratio_size": "median size of the log-ratio {1:.2g} nats, at first {0:.2g}",
    "teacher_divergence": "divergence from the teacher {1:.2g} nats, at first {0:.2g}",
}


class TrainingCollapsed(RuntimeError, FloatingPointError):
    """The student's samples have been alike for longer than the run allows."""


def mode_collapse(history: Sequence[Line], rule: CollapseRule | None = None) -> ModeCollapse | None:
    """Look for mode collapse at the end of a log.

    Args:
        history: lines of ``metrics.jsonl``, oldest first, each with its ``step``; lines without metrics of student
            paths are left out.
        rule: `CollapseRule` by default.

    Returns:
        The sign, or None where there is none, or too few lines.

    Examples:
        >>> history = [{"step": 10.0 * index, "sample_agreement": 0.1} for index in range(20)]
        >>> mode_collapse(history) is None
        True
        >>> history += [{"step": 200.0 + 10.0 * index, "sample_agreement": 0.6} for index in range(20)]
        >>> mode_collapse(history).updates > 100
        True
    """
    rule = CollapseRule() if rule is None else rule
    name = next((each for each in (AGREEMENT, FIRST_ENTROPY) if history and each in history[-1]), None)
    if name is None:
        return None
    lines = [line for line in history if math.isfinite(line.get(name, math.nan))]
    end = len(lines)
    if not _collapsed(lines, end, name, rule):
        return None
    since = end
    while _collapsed(lines, since - 1, name, rule):
        since -= 1
    return ModeCollapse(
        since=lines[since - 1]["step"],
        step=lines[-1]["step"],
        changes={each: change for each in DESCRIPTIONS if (change := _change(history, each, rule)) is not None},
    )


def stop_if_collapsed(sign: ModeCollapse | None, limit: int) -> None:
    """End a run whose samples have been alike for too long."""
    if sign is not None and limit and sign.updates >= limit:
        raise TrainingCollapsed(f"stopped at step {sign.step:.0f}, after {sign.updates} updates of {sign}")


class CollapseWatch:
    """Mode collapse in a loop of your own: takes the metrics of each update as they are, and reads them now and then.
    With several processes all of them add the metrics of all updates; what is looked at are means over processes.

    Args:
        every: updates between two looks, at which their metrics are read from the device, all at once.
        stop_after: updates for which the sign may stand; 0 for any number.
        rule: `CollapseRule` by default.

    Raises:
        ValueError: for fewer than one update between looks, or a negative ``stop_after``.

    Examples:
        >>> watch = CollapseWatch(every=2)
        >>> for step in range(4):
        ...     sign = watch.add(step, {"sample_agreement": torch.tensor(0.1)})  # StepOutput.metrics of the student
        ...     if sign is not None and sign.is_new:
        ...         print(sign)
    """

    def __init__(self, *, every: int = 10, stop_after: int = 100, rule: CollapseRule | None = None) -> None:
        check_count("every", every)
        check_count("stop_after", stop_after, minimum=0)
        self.every, self.stop_after, self.rule = every, stop_after, rule
        self.history: list[dict[str, float]] = []
        self._kept: list[dict[str, Tensor]] = []

    def add(self, step: int, metrics: Mapping[str, Tensor]) -> ModeCollapse | None:
        """Note the metrics of an update.

        Args:
            step: number of the update, rising.
            metrics: scalars; those that show collapse are kept.

        Returns:
            The sign, at updates that look for it.

        Raises:
            TrainingCollapsed: once the sign has stood for ``stop_after`` updates.
        """
        self._kept.append({name: metrics[name] for name in DESCRIPTIONS if name in metrics})
        if len(self._kept) < self.every:
            return None
        window = MetricWindow()
        for line in on_the_host(self._kept):
            window.add(line)
        devices = {value.device for line in self._kept for value in line.values()}
        self._kept = []
        means, _ = agree(window.flush(), False, next(iter(devices), torch.device("cpu")))
        self.history.append({"step": float(step), **means})
        sign = mode_collapse(self.history, self.rule)
        stop_if_collapsed(sign, self.stop_after)
        return sign


def _collapsed(lines: Sequence[Line], end: int, name: str, rule: CollapseRule) -> bool:
    """Whether the sign stands at the line before ``end``."""
    windows = _windows(lines, end, rule)
    if windows is None:
        return False
    first, last = ([line[name] for line in window] for window in windows)
    before, after = lines[: min(end, NOISE_LINES)], lines[max(0, end - NOISE_LINES) : end]
    error = math.sqrt(_variance(before, name) / len(first) + _variance(after, name) / len(last))
    return rule.is_met(name, statistics.fmean(first), statistics.fmean(last), error)


def _windows(lines: Sequence[Line], end: int, rule: CollapseRule) -> tuple[Sequence[Line], Sequence[Line]] | None:
    """The first and the last lines before ``end``; None where they would overlap."""
    if end < 3:
        return None
    first = 1
    while first < end and lines[first - 1]["step"] < rule.updates:
        first += 1
    last = 2
    while last < end - first and lines[end - 1]["step"] - lines[end - last - 1]["step"] < rule.updates:
        last += 1
    return None if first + last > end else (lines[:first], lines[end - last : end])


def _variance(lines: Sequence[Line], name: str) -> float:
    """Of a line about its trend: half the mean square of the differences of neighbours."""
    values = [line[name] for line in lines]
    return statistics.fmean((b - a) ** 2 for a, b in pairwise(values)) / 2.0


def _change(history: Sequence[Line], name: str, rule: CollapseRule) -> tuple[float, float] | None:
    """First and last mean of a figure; None where it was not logged often enough."""
    lines = [line for line in history if math.isfinite(line.get(name, math.nan))]
    windows = _windows(lines, len(lines), rule)
    if windows is None:
        return None
    first, last = (statistics.fmean(line[name] for line in window) for window in windows)
    return first, last
