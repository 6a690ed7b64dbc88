"""Metrics between two lines of the log, and the log itself, ``metrics.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"


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


def read_metrics(directory: Path) -> list[dict[str, float]]:
    """Entries of ``metrics.jsonl``; a last line cut short by a kill is left out."""
    file = Path(directory) / METRICS_FILE
    entries: list[dict[str, float]] = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


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
        raise OSError(
            f"cannot write {file} ({error}); checkpoints are as they were: make room, and run again to resume"
        ) from error
