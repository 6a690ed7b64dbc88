"""Metrics between two lines of the log, and the log itself, ``metrics.jsonl``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

METRICS_FILE = "metrics.jsonl"


class TrainingDiverged(RuntimeError, FloatingPointError):
    """Too many updates in a row had a loss or a gradient that was not finite."""


class MetricWindow:
    """Means over the steps since the last flush; also counts skipped updates in a row."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.consecutive_skips = 0
        self._last_skipped = 0.0

    def add(self, metrics: dict[str, float]) -> None:
        """One step."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        skipped = sum(value for name, value in metrics.items() if name.endswith("skipped_updates"))
        self.consecutive_skips = self.consecutive_skips + 1 if skipped > self._last_skipped else 0
        self._last_skipped = skipped

    def check_divergence(self, step: int, num_steps: int, limit: int) -> None:
        """End a run of which too many steps in a row were skipped.

        Args:
            step: steps done.
            num_steps: of the whole run.
            limit: skipped steps in a row; in short runs a quarter of the run, but 5 or more.
        """
        all_skipped = step == num_steps and self.consecutive_skips >= num_steps
        if all_skipped or self.consecutive_skips >= min(limit, max(5, num_steps // 4)):
            raise TrainingDiverged(
                f"{self.consecutive_skips} updates in a row had a loss or a gradient that was not finite "
                f"(step {step}); lower the learning rate, or use fp32"
            )

    def flush(self) -> dict[str, float]:
        """The means, and a fresh start."""
        means = {name: self.sums[name] / self.counts[name] for name in self.sums}
        self.sums, self.counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint between two lines of the log must remember."""
        return {
            "sums": dict(self.sums),
            "counts": dict(self.counts),
            "consecutive_skips": self.consecutive_skips,
            "last_skipped": self._last_skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])
        self.consecutive_skips, self._last_skipped = state["consecutive_skips"], state["last_skipped"]


def on_the_host(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Scalars of several steps as numbers, with one copy from the device for all tensors among them."""
    tensors = [value.detach().double() for line in lines for value in line.values() if isinstance(value, Tensor)]
    copied = iter(torch.stack(tensors).tolist() if tensors else [])
    return [
        {name: next(copied) if isinstance(value, Tensor) else float(value) for name, value in line.items()}
        for line in lines
    ]


def read_metrics(directory: Path) -> list[dict[str, float]]:
    """Entries of ``metrics.jsonl``.

    Lines that cannot be read are left out: the last one may be cut short by a kill, and others are named in a warning.

    Examples:
        >>> from pathlib import Path
        >>> written = Path("metrics.jsonl").write_text('{"step": 10, "loss": 2.5}')
        >>> read_metrics(Path("."))
        [{'step': 10, 'loss': 2.5}]
    """
    file = Path(directory) / METRICS_FILE
    lines = file.read_bytes().splitlines() if file.exists() else []
    entries = [_entry(line) for line in lines]
    damaged = [number for number, entry in enumerate(entries, start=1) if entry is None and number < len(lines)]
    if damaged:
        warnings.warn(f"{file}: line {damaged[0]} is damaged ({len(damaged)} in all) and left out", stacklevel=2)
    return [entry for entry in entries if entry is not None]


def _entry(line: bytes) -> dict[str, float] | None:
    """Numbers by name, "step" among them; None for anything else."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or "step" not in entry:
        return None
    return entry if all(isinstance(value, int | float) for value in entry.values()) else None


def set_aside(file: Path) -> None:
    """Rename a log of which no checkpoint is left, so that a run from the start has its own."""
    if file.exists():
        file.replace(file.with_suffix(".previous.jsonl"))


def append_metrics(directory: Path, entry: dict[str, float]) -> None:
    """One more line.

    Raises:
        OSError: if it cannot be written.
    """
    file = Path(directory) / METRICS_FILE
    with _writing(file), file.open("a") as stream:
        stream.write(json.dumps(entry) + "\n")


def rewrite_metrics(directory: Path, entries: list[dict[str, float]]) -> None:
    """Exactly these lines, all at once.

    Raises:
        OSError: if they cannot be written.
    """
    file = Path(directory) / METRICS_FILE
    partial = file.with_suffix(".partial")
    with _writing(file):
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        partial.replace(file)


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if file.parent.exists():
            remedy = "checkpoints are as they were: make room, and run again to resume"
        else:
            remedy = "the folder was removed while the run wrote to it: run again to start from the first step"
        raise OSError(f"cannot write {file} ({error}); {remedy}") from error
