"""Trackers get what ``metrics.jsonl`` gets; one that is not there is named before anything runs."""

import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from discrete_distill.training import LoopConfig, TrainingLoop, read_metrics
from discrete_distill.training.tracking import make_tracker


class Nothing:
    """A part without a state."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Recorder(ModuleType):
    """Stands for wandb or trackio: what it was told, in order."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.told: list[tuple[str, Any]] = []

    def init(self, **settings: Any) -> None:
        self.told.append(("init", settings))

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.told.append(("log", (step, dict(metrics))))

    def finish(self) -> None:
        self.told.append(("finish", None))


def train(directory: Path, track: str, num_steps: int = 4) -> None:
    def step(index: int, _: torch.Generator) -> dict[str, float]:
        return {"loss": float(index)}

    config = LoopConfig(num_steps=num_steps, log_every=2, checkpoint_every=2, track=track)  # type: ignore[arg-type]
    TrainingLoop(config, directory, {"nothing": Nothing()}, step, label="tracked", quiet=True).run()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_hosted_trackers_get_every_line_and_a_resumed_run_continues(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(name)
    monkeypatch.setitem(sys.modules, name, recorder)
    train(tmp_path / "run", name)
    train(tmp_path / "run", name, num_steps=6)
    assert [event for event, _ in recorder.told] == ["init", "log", "log", "finish", "init", "log", "finish"]
    logged = [value for event, value in recorder.told if event == "log"]
    lines = read_metrics(tmp_path / "run")
    assert logged == [(int(line["step"]), {"loss": line["loss"]}) for line in lines]
    first, second = (value for event, value in recorder.told if event == "init")
    assert first == second
    assert first["project"] == "discrete_distill-tracked"
    assert first["resume"] == "allow"
    assert first["name"].startswith("run-")


def test_tensorboard_writes_its_files(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(2, 0.5), (4, 2.5)]


def test_a_tracker_is_closed_when_training_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder("trackio")
    monkeypatch.setitem(sys.modules, "trackio", recorder)

    def fail(index: int, _: torch.Generator) -> dict[str, float]:
        raise ValueError("no data")

    config = LoopConfig(num_steps=1, track="trackio")
    with pytest.raises(ValueError, match="no data"):
        TrainingLoop(config, tmp_path, {"nothing": Nothing()}, fail, label="x", quiet=True).run()
    assert recorder.told[-1][0] == "finish"


def test_a_tracker_that_is_not_installed_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="track='wandb' needs the package wandb: pip install wandb"):
        LoopConfig(num_steps=1, track="wandb")


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"track is one of .*, got 'paper'"):
        make_tracker("paper", tmp_path, label="x")  # type: ignore[arg-type]


def test_other_ranks_do_not_track(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder("wandb")
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    config = LoopConfig(num_steps=2, track="wandb")
    step = lambda index, generator: {"loss": 0.0}  # noqa: E731
    TrainingLoop(config, tmp_path, {"nothing": Nothing()}, step, label="x", quiet=True, rank=1).run()
    assert recorder.told == []
