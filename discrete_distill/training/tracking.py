"""Where metrics go beside ``metrics.jsonl``: TensorBoard, trackio or Weights & Biases, by one flag."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

TrackerName = Literal["none", "tensorboard", "trackio", "wandb"]


class Tracker(Protocol):
    """Takes one line of metrics at a time."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def check_tracker(name: str) -> None:
    """Look whether a tracker can be had, before anything is computed."""
    if name not in get_args(TrackerName):
        raise ValueError(f"track is one of {get_args(TrackerName)}, got {name!r}")
    if name != "none" and importlib.util.find_spec(name) is None:
        raise ValueError(f"track={name!r} needs the package {name}: pip install {name}, or leave track out")


def make_tracker(name: TrackerName, directory: Path, *, label: str, first_step: int = 0) -> Tracker:
    """The tracker of a run; a run that is resumed continues the curves that it had.

    Args:
        name: "none" for one that does nothing.
        directory: of the run; its path names the run.
        label: what is trained.
        first_step: where this session starts; what was tracked beyond it is dropped, where the tracker can.

    Raises:
        ValueError: see `check_tracker`.
    """
    check_tracker(name)
    if name == "tensorboard":
        return TensorBoardTracker(directory / "tensorboard", first_step)
    if name == "none":
        return NoTracker()
    return HostedTracker(importlib.import_module(name), directory, label)


class NoTracker:
    """Tracks nothing."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class TensorBoardTracker:
    """Scalars in a folder that ``tensorboard --logdir`` shows."""

    def __init__(self, directory: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(directory), purge_step=first_step or None)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One scalar for each metric."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still in memory."""
        self.writer.close()


class HostedTracker:
    """trackio or Weights & Biases, which share ``init``, ``log`` and ``finish``."""

    def __init__(self, module: Any, directory: Path, label: str) -> None:
        self.module = module
        place = str(Path(directory).resolve())
        name = f"{Path(directory).name}-{hashlib.sha256(place.encode()).hexdigest()[:6]}"
        # The same folder is the same run, so that a resumed one continues it.
        key = {"id": name, "dir": place} if module.__name__ == "wandb" else {}
        module.init(project=f"discrete_distill-{label}", name=name, resume="allow", **key)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One line."""
        self.module.log(metrics, step=step)

    def close(self) -> None:
        """End the session."""
        self.module.finish()
