"""Mode collapse in the Trainer: a warning and a checkpoint when the samples become alike, an end when they stay so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from discrete_distill.integrations import collapse_callback
from discrete_distill.integrations.transformers import DiDiInstructTrainer
from discrete_distill.training import TrainingCollapsed
from tests.integrations.students import trainer


@pytest.fixture(autouse=True)
def own_process_state() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The warnings of the callback."""
    found: list[str] = []
    monkeypatch.setattr(collapse_callback.logger, "warning", found.append)
    return found


def collapsing(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> DiDiInstructTrainer:
    """A Trainer whose student says one thing only from the twenty-first update on."""
    made = trainer(folder, max_steps=60, logging_steps=2, **{"save_strategy": "steps", "save_steps": 1000, **settings})
    loss = made.method.student_loss

    def student_loss(*args: Any, **kwargs: Any) -> Any:
        out = loss(*args, **kwargs)
        value = 0.2 if made.state.global_step < 20 else 1.0
        out.metrics["sample_agreement"] = torch.tensor(value)
        return out

    monkeypatch.setattr(made.method, "student_loss", student_loss)
    return made


def test_it_warns_saves_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]) -> None:
    made = collapsing(tmp_path, monkeypatch, stop_on_collapse=10)
    with pytest.raises(TrainingCollapsed, match="after 10 updates"):
        made.train()
    (line,) = told
    assert "MODE COLLAPSE" in line
    (saved,) = (int(each.name.removeprefix("checkpoint-")) for each in tmp_path.glob("checkpoint-*"))
    assert 20 < saved <= 30
    assert made.state.global_step == saved + 10


def test_a_run_that_saves_nothing_and_never_stops_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    made = collapsing(tmp_path, monkeypatch, stop_on_collapse=0, save_strategy="no")
    made.train()
    assert made.state.global_step == 60
    assert len(told) == 1
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_healthy_run_logs_the_figures_and_is_left_alone(tmp_path: Path, told: list[str]) -> None:
    made = trainer(tmp_path, max_steps=12, logging_steps=1, save_strategy="no")
    made.train()
    lines = [line for line in made.state.log_history if "loss" in line]
    assert len(lines) == 12
    assert all(0.0 <= line["sample_agreement"] <= 1.0 and line["first_entropy"] > 0.0 for line in lines)
    assert told == []


def test_a_negative_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stop_on_collapse.*-1"):
        trainer(tmp_path, stop_on_collapse=-1)
