"""Every example runs, at tiny size, and does what it is there to show."""

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

ROOT = Path(__file__).resolve().parents[1]
DISTILLATIONS = ("raw_pytorch", "accelerate_loop", "lightning_module")


def run(name: str, **sizes: int) -> dict[str, Any]:
    """Run ``main`` of an example from the root of the repository."""
    AcceleratorState._reset_state(reset_partial_state=True)
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module(f"examples.{name}").main(**sizes)
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("name", DISTILLATIONS)
def test_the_method_in_three_loops(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "lightning_module":
        pytest.importorskip("lightning", reason="lightning is an optional package")
    found = run(name, steps=12, teacher_steps=40)
    assert found["language"] == pytest.approx(1.1716, abs=1e-3)
    assert all(math.isfinite(value) for value in found.values())
    assert found["student"] != found["teacher"]
    printed = capsys.readouterr().out
    assert all(f"{name} {value:.3f}" in printed for name, value in found.items())


def test_rgas_steers_a_masked_language_model() -> None:
    shares = run("rgas_on_masked_lm", steps=20)
    assert shares["RGAS"] < shares["plain"]


def test_grouped_advantages_raise_a_reward() -> None:
    found = run("grouped_advantages_in_grpo", steps=30)
    assert found["last"] > found["first"] + 0.02


def test_a_masked_language_model_learns_a_reward_by_clipped_ratios() -> None:
    found = run("grpo", steps=20)
    assert found["last"] > found["first"] + 0.1
    assert found["unchanged"] == 1.0


def test_token_losses_distil_bert() -> None:
    found = run("distil_bert", steps=30)
    assert found["last"] < 0.5 * found["first"]


def test_every_example_is_tested() -> None:
    names = {file.stem for file in (ROOT / "examples").glob("*.py")} - {"__init__", "toy"}
    assert names == {*DISTILLATIONS, "rgas_on_masked_lm", "grouped_advantages_in_grpo", "grpo", "distil_bert"}
