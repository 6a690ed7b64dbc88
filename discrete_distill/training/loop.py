"""The one training loop: progress bar, metrics, checkpoints, resume, a clean leave on a signal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator
from tqdm import tqdm

from ..checks import check_all_counts, check_count
from ..distributed.collectives import num_processes
from ..distributed.processes import agree, check_all_equal
from ..streams import LastingStream
from .checkpoint import CheckpointStore
from .health import explain
from .lock import folder_lock
from .metrics import METRICS_FILE, MetricWindow, append_metrics, read_metrics, rewrite_metrics, set_aside
from .mode_collapse import mode_collapse, stop_if_collapsed
from .seeding import step_generator
from .stopping import stop_requests
from .stored_settings import Setting, refuse_changes
from .tracking import NoTracker, Tracker, TrackerName, check_tracker, make_tracker


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
        stop_on_collapse: updates for which the samples of a batch may be alike (see `mode_collapse`) before the run
            stops; at most a quarter of the run, or 5; 0 for a run that goes on.
        skip_limit: updates in a row with a non-finite loss or gradient after which the run stops; at most a quarter of
            the run, or 5.
        track: where metrics go in addition to ``metrics.jsonl``: "tensorboard", "trackio", "wandb", or "none".

    Examples:
        >>> from pathlib import Path
        >>> config = LoopConfig(num_steps=4, log_every=2, checkpoint_every=2)
        >>> def step(index, generator):
        ...     return {"loss": 4.0 - index}
        >>> loop = TrainingLoop(config, Path("run"), {}, step, label="demo", quiet=True)
        >>> [(line["step"], line["loss"]) for line in loop.run()]  # Means of two steps.
        [(2.0, 3.5), (4.0, 1.5)]
    """

    num_steps: int
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    stop_on_collapse: int = 100
    skip_limit: int = 50
    track: TrackerName = "none"

    def __post_init__(self) -> None:
        check_all_counts(self, "num_steps", "log_every", "checkpoint_every", "keep_checkpoints", "skip_limit")
        check_count("stop_on_collapse", self.stop_on_collapse, minimum=0)
        check_count("seed", self.seed, minimum=-(2**63))
        check_tracker(self.track)


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
        make_bar: makes the progress bar; takes tqdm's arguments.
        settings: what the result depends on, by name; see `flat_settings`. They are kept in every checkpoint, and a run
            that is resumed with others is refused. The seed of ``config`` is always among them.

    Examples:
        >>> from pathlib import Path
        >>> optimizer = torch.optim.AdamW(student.parameters())
        >>> def step(index, generator):
        ...     loss = process.nelbo(student, data, generator=generator).loss
        ...     loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     return {"loss": float(loss.detach())}
        >>> parts = {"student": student, "optimizer": optimizer}
        >>> loop = TrainingLoop(LoopConfig(num_steps=2), Path("run"), parts, step, label="training", quiet=True)
        >>> loop.run()[-1]["step"]
        2.0
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
        make_bar: Callable[..., tqdm] = tqdm,
        settings: Mapping[str, Setting] | None = None,
    ) -> None:
        self.config = config
        self.settings = {"seed": config.seed, **(settings or {})}
        self.directory = Path(directory)
        self.parts = parts
        self.step_fn = step_fn
        self.label = label
        self.shown = shown
        self.rank = rank
        self.device = torch.device(device)
        self.quiet = quiet
        self.make_bar = make_bar
        self.store = CheckpointStore(self.directory / "checkpoints", keep=config.keep_checkpoints)
        self.history: list[dict[str, float]] = []
        self.window = MetricWindow()
        self.tracker: Tracker = NoTracker()
        self._seconds_before = 0.0
        self._shown_signs: set[str] = set()

    def run(self) -> list[dict[str, float]]:
        """Train to the end; returns the logged metrics. On SIGINT or SIGTERM a checkpoint is written first.

        Raises:
            TrainingDiverged: see ``LoopConfig.skip_limit``.
            TrainingCollapsed: see ``LoopConfig.stop_on_collapse``; a checkpoint was written when the sign appeared.
            KeyboardInterrupt: after an interruption was saved.
            OSError: if the folder cannot be written; checkpoints that were are as they were.
            FolderInUse: if another process trains in the folder.
            ValueError: if the folder holds a run with other settings, or one that is longer than this.
        """
        with folder_lock(self.directory) if self.rank == 0 else nullcontext():
            return self._run()

    def _run(self) -> list[dict[str, float]]:
        self.directory.mkdir(parents=True, exist_ok=True)
        first = self._resume()
        started = time.perf_counter()
        quiet = self.quiet or self.rank > 0
        bar = self.make_bar(
            total=self.config.num_steps, initial=first, desc=self.label, disable=quiet, file=LastingStream(sys.stderr)
        )
        self.tracker = self._make_tracker(first)
        with bar, stop_requests() as stop_requested:
            try:
                for step in range(first, self.config.num_steps):
                    generator = step_generator(self.config.seed, step, rank=self.rank, device=self.device)
                    torch.manual_seed(generator.initial_seed())
                    metrics, interrupted = agree(self.step_fn(step, generator), stop_requested(), self.device)
                    self.window.add(metrics)
                    bar.update()
                    self._after(step + 1, self._seconds_before + time.perf_counter() - started, interrupted, bar)
            finally:
                self.tracker.close()
        return self.history

    def _after(self, done: int, seconds: float, interrupted: bool, bar: tqdm) -> None:
        """What follows on a step: the log, and a checkpoint where one is due."""
        last, collapse = done == self.config.num_steps, None
        if done % self.config.log_every == 0 or last:
            self._log(done, seconds, self.window.flush(), bar)
            collapse = mode_collapse(self.history)
        self.window.check_divergence(done, self.config.num_steps, self.config.skip_limit)
        appeared = collapse is not None and collapse.is_new
        if interrupted or appeared or done % self.config.checkpoint_every == 0 or last:
            self._save(done, seconds)
        if not last:  # A run that is over leaves its student, and a report of the collapse.
            stop_if_collapsed(collapse, min(self.config.stop_on_collapse, max(5, self.config.num_steps // 4)))
        if interrupted:
            raise KeyboardInterrupt(f"{self.label} stopped at step {done}; run again to resume")

    def _make_tracker(self, first: int) -> Tracker:
        if self.rank > 0:
            return NoTracker()
        return make_tracker(self.config.track, self.directory, label=self.label, first_step=first)

    def _resume(self) -> int:
        found = self.store.load_latest()
        remedy = "give all of them the same folder, on a disk that they share"
        check_all_equal(0 if found is None else found[0], "checkpoints", remedy, self.device)
        if found is None:
            if self.rank == 0:
                set_aside(self.directory / METRICS_FILE)
            return 0
        step, state = found
        refuse_changes(state.get("settings", self.settings), self.settings, where=self.directory)
        if step > self.config.num_steps:
            raise ValueError(
                f"the run in {self.directory} is at step {step}, beyond num_steps = {self.config.num_steps}; give as "
                "many steps or more, or choose another folder"
            )
        missing = sorted(self.parts.keys() - state.keys())
        if missing:
            raise ValueError(
                f"the checkpoint of step {step} in {self.store.directory} holds no {', '.join(missing)}: it is of a "
                "run with other settings; resume with those, or choose another folder"
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self._seconds_before = state["seconds"]
        if "window" in state:
            self.window.load_state_dict(state["window"])
        self.history = [entry for entry in read_metrics(self.directory) if entry["step"] <= step]
        if self.rank == 0:
            rewrite_metrics(self.directory, self.history)
        return step

    def _save(self, step: int, seconds: float) -> None:
        if self.rank > 0 and num_processes() == 1:
            return
        # All processes take part: what is sharded is gathered.
        state: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        if self.rank == 0:
            more = {"seconds": seconds, "window": self.window.state_dict(), "settings": self.settings}
            self.store.save(step, {**state, **more})

    def _log(self, step: int, seconds: float, metrics: dict[str, float], bar: tqdm) -> None:
        entry = {"step": float(step), "seconds": round(seconds, 3), **metrics}
        self.history.append(entry)
        if self.rank == 0:
            append_metrics(self.directory, entry)
            self.tracker.log(step, metrics)
        bar.set_postfix({name: f"{metrics[name]:.3g}" for name in self.shown if name in metrics})
        self._show_signs(step, bar)

    def _show_signs(self, step: int, bar: tqdm) -> None:
        """Signs of trouble, each once; a ratio is given a quarter of the run to find its feet."""
        early = 4 * step < self.config.num_steps
        for name, sentence in explain(self.history).items():
            if name in self._shown_signs or bar.disable or (early and name in ("discriminator", "log_ratio_std")):
                continue
            self._shown_signs.add(name)
            bar.write(f"{self.label}, step {step}: {sentence}", file=LastingStream(sys.stdout))
