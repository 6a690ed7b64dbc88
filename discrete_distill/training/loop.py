"""The one training loop: progress bar, JSONL metrics, checkpoints, resume, a clean leave on a signal."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator
from tqdm import tqdm

from .checkpoint import CheckpointStore
from .seeding import step_generator


class Stateful(Protocol):
    """Anything whose state a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


@dataclass(kw_only=True)
class LoopConfig:
    """How long a loop runs and what it leaves behind.

    Args:
        num_steps: training steps.
        seed: fixes every draw of the loop; ranks fold in their number.
        log_every: steps between lines of ``metrics.jsonl``, which hold means over those steps.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of the newest stay on disk.
        skip_limit: updates in a row with a non-finite gradient after which the run stops.
    """

    num_steps: int
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    skip_limit: int = 50

    def __post_init__(self) -> None:
        for name in ("num_steps", "log_every", "checkpoint_every", "keep_checkpoints", "skip_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class TrainingDiverged(RuntimeError):
    """Too many updates in a row had a gradient that was not finite."""


class TrainingLoop:
    """Runs ``step_fn(step, generator) -> metrics`` from the last checkpoint to the end.

    All randomness of a step comes from its generator (and PyTorch's global one, seeded alike for dropout), a
    function of seed, step and rank alone: a run that was interrupted draws what an uninterrupted one would
    have drawn.

    Args:
        config: see `LoopConfig`.
        directory: ``metrics.jsonl`` and ``checkpoints/`` go here.
        parts: what a checkpoint holds, by name.
        step_fn: one training step.
        label: shown on the progress bar.
        shown: metrics to show on it.
        rank: of this process; only rank 0 writes.
        device: of the generators.
        quiet: no progress bar.
    """

    def __init__(
        self,
        config: LoopConfig,
        directory: Path,
        parts: Mapping[str, Stateful],
        step_fn: Callable[[int, Generator], dict[str, float]],
        *,
        label: str,
        shown: tuple[str, ...] = ("loss",),
        rank: int = 0,
        device: torch.device | str = "cpu",
        quiet: bool = False,
    ) -> None:
        self.config = config
        self.directory = Path(directory)
        self.parts = parts
        self.step_fn = step_fn
        self.label = label
        self.shown = shown
        self.rank = rank
        self.device = torch.device(device)
        self.quiet = quiet
        self.store = CheckpointStore(self.directory / "checkpoints", keep=config.keep_checkpoints)
        self.history: list[dict[str, float]] = []
        self.window = MetricWindow()
        self._seconds_before = 0.0

    def run(self) -> list[dict[str, float]]:
        """Train to the end; returns the logged metrics. On SIGINT or SIGTERM a checkpoint is written first.

        Raises:
            TrainingDiverged: see ``LoopConfig.skip_limit``.
            KeyboardInterrupt: after an interruption was saved.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        first = self._resume()
        started = time.perf_counter()
        bar = tqdm(total=self.config.num_steps, initial=first, desc=self.label, disable=self.quiet or self.rank > 0)
        with bar, stop_requests() as stop_requested:
            for step in range(first, self.config.num_steps):
                generator = step_generator(self.config.seed, step, rank=self.rank, device=self.device)
                torch.manual_seed(generator.initial_seed())
                self.window.add(self.step_fn(step, generator))
                bar.update()
                done = step + 1
                if done % self.config.log_every == 0 or done == self.config.num_steps:
                    seconds = self._seconds_before + time.perf_counter() - started
                    self._log(done, seconds, self.window.flush(), bar)
                self._check_divergence(done)
                interrupted = stop_requested()
                if interrupted or done % self.config.checkpoint_every == 0 or done == self.config.num_steps:
                    self._save(done, self._seconds_before + time.perf_counter() - started)
                if interrupted:
                    raise KeyboardInterrupt(f"{self.label} stopped at step {done}; run again to resume")
        return self.history

    def _resume(self) -> int:
        found = self.store.load_latest()
        if found is None:
            if self.rank == 0:
                (self.directory / "metrics.jsonl").unlink(missing_ok=True)
            return 0
        step, state = found
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self._seconds_before = state["seconds"]
        if "window" in state:
            self.window.load_state_dict(state["window"])
        self.history = [entry for entry in read_metrics(self.directory) if entry["step"] <= step]
        if self.rank == 0:
            _write_lines(self.directory / "metrics.jsonl", self.history)
        return step

    def _save(self, step: int, seconds: float) -> None:
        if self.rank == 0:
            state: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
            self.store.save(step, {**state, "seconds": seconds, "window": self.window.state_dict()})

    def _log(self, step: int, seconds: float, metrics: dict[str, float], bar: tqdm) -> None:
        entry = {"step": float(step), "seconds": round(seconds, 3), **metrics}
        self.history.append(entry)
        if self.rank == 0:
            with (self.directory / "metrics.jsonl").open("a") as stream:
                stream.write(json.dumps(entry) + "\n")
        bar.set_postfix({name: f"{metrics[name]:.3g}" for name in self.shown if name in metrics})

    def _check_divergence(self, step: int) -> None:
        if self.window.consecutive_skips >= self.config.skip_limit:
            raise TrainingDiverged(
                f"{self.window.consecutive_skips} updates in a row had a gradient that was not finite "
                f"(step {step}); lower the learning rate, or use fp32"
            )


class MetricWindow:
    """Means over the steps since the last flush; also counts skipped updates in a row."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.consecutive_skips = 0
        self._last_skipped = 0.0

    def add(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        skipped = sum(value for name, value in metrics.items() if name.endswith("skipped_updates"))
        self.consecutive_skips = self.consecutive_skips + 1 if skipped > self._last_skipped else 0
        self._last_skipped = skipped

    def flush(self) -> dict[str, float]:
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
    file = Path(directory) / "metrics.jsonl"
    entries: list[dict[str, float]] = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def _write_lines(file: Path, entries: list[dict[str, float]]) -> None:
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """While inside, SIGINT and SIGTERM are noted rather than obeyed; the yielded function tells of it."""
    received: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        previous = {number: signal.signal(number, lambda n, _: received.append(n)) for number in signals}
    except ValueError:  # Not in the main thread, where handlers cannot be set.
        previous = {}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
