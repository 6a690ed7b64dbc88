"""A run is resumed with the settings that it was started with, or refused by the name of what differs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from discrete_distill.training import (
    LoopConfig,
    ModuleOptimizer,
    OptimizerConfig,
    TrainingLoop,
    flat_settings,
    refuse_changes,
)


@dataclass
class Inner:
    rate: float = 0.1
    steps: tuple[int, ...] = (2, 4)


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    place: Path = Path("runs")
    none: None = None


def test_settings_are_flat_plain_and_complete() -> None:
    flat = flat_settings(Outer(), "run", leave_out=("run.place",))
    assert flat == {"run.inner.rate": 0.1, "run.inner.steps": "(2, 4)", "run.none": None}
    assert flat_settings(Outer())["place"] == "runs"


@dataclass
class OneKind:
    size: int = 2


@dataclass
class OtherKind(OneKind):
    pass


@dataclass
class Choice:
    kind: OneKind | OtherKind = field(default_factory=OneKind)
    fixed: OneKind = field(default_factory=OneKind)


def test_kinds_with_the_same_fields_are_told_apart() -> None:
    assert flat_settings(Choice()) == {"kind": "OneKind", "kind.size": 2, "fixed.size": 2}
    assert flat_settings(Choice(kind=OtherKind()), "a") == {"a.kind": "OtherKind", "a.kind.size": 2, "a.fixed.size": 2}
    assert flat_settings(Choice(fixed=OtherKind()), leave_out=("kind",)) == {"fixed": "OtherKind", "fixed.size": 2}


def test_what_differs_is_named_with_both_values() -> None:
    refuse_changes({"a": 1, "b": "x"}, {"a": 1, "b": "x"}, where="here")
    with pytest.raises(ValueError, match=r"b was x and is y"):
        refuse_changes({"a": 1, "b": "x"}, {"a": 1, "b": "y"}, where="here")
    with pytest.raises(ValueError, match=r"c was absent and is 3"):
        refuse_changes({"a": 1}, {"a": 1, "c": 3}, where="here")


def run(directory: Path, num_steps: int = 2, *, seed: int = 0, settings: Any = None, **optimizer: Any) -> list[float]:
    """Rates that were used."""
    torch.manual_seed(0)
    network = nn.Linear(3, 3)
    config = OptimizerConfig(**{"learning_rate": 0.01, "warmup_steps": 0, **optimizer})
    module_optimizer, used = ModuleOptimizer(network, config, num_steps, Accelerator(cpu=True)), []

    def step(index: int, generator: torch.Generator) -> dict[str, float]:
        loss = network(torch.randn(4, 3, generator=generator)).square().mean()
        used.append(module_optimizer.step(loss)["learning_rate"])
        return {"loss": loss.item()}

    loop = LoopConfig(num_steps=num_steps, seed=seed, checkpoint_every=1)
    TrainingLoop(loop, directory, {"network": module_optimizer}, step, label="x", quiet=True, settings=settings).run()
    return used


CHANGES: dict[str, dict[str, Any]] = {
    "learning_rate": {"learning_rate": 0.05},
    "betas": {"betas": (0.8, 0.9)},
    "weight_decay": {"weight_decay": 0.1},
    "warmup_steps": {"warmup_steps": 3},
    "schedule": {"schedule": "cosine"},
    "gradient_clip": {"gradient_clip": 0.5},
    "ema_decay": {"ema_decay": 0.9},
    "seed": {"seed": 1},
    "method": {"settings": {"method": "another"}},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_that_is_resumed_with_another_setting_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    settings = {"method": "one"} if name == "method" else None
    run(tmp_path, settings=settings)
    for num_steps in (2, 4):
        with pytest.raises(ValueError, match=name):
            run(tmp_path, num_steps, **CHANGES[name])
    run(tmp_path, 4, settings=settings)


def test_a_moving_average_that_is_left_out_later_is_refused(tmp_path: Path) -> None:
    run(tmp_path, ema_decay=0.9)
    with pytest.raises(ValueError, match="ema_decay"):
        run(tmp_path, 4)


def test_a_run_may_be_longer_than_it_was_and_not_shorter(tmp_path: Path) -> None:
    assert len(run(tmp_path, 3)) == 3
    assert len(run(tmp_path, 5)) == 2
    with pytest.raises(ValueError, match=r"step 5.*num_steps = 4"):
        run(tmp_path, 4)
