"""Every example runs, at tiny size, and does what it is there to show."""

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from discrete_distill.models import DiT, DiTConfig

ROOT = Path(__file__).resolve().parents[1]
DISTILLATIONS = ("raw_pytorch", "accelerate_loop", "lightning_module")


def run(name: str, **sizes: Any) -> dict[str, Any]:
    """Run ``main`` of an example from the root of the repository."""
    AcceleratorState._reset_state(reset_partial_state=True)
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module(f"examples.{name}").main(**sizes)
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize(
    ("name", "teacher", "sharing"),
    [
        *((name, "dit", "copies") for name in DISTILLATIONS),
        ("raw_pytorch", "llama", "copies"),
        ("accelerate_loop", "bert", "adapters"),
        ("lightning_module", "bert", "adapters"),
    ],
)
def test_the_method_in_three_loops(name: str, teacher: str, sharing: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "lightning_module":
        pytest.importorskip("lightning", reason="lightning is an optional package")
    if sharing == "adapters":
        pytest.importorskip("peft", reason="LoRA is an optional extra")
    found = run(name, teacher=teacher, sharing=sharing, steps=12, teacher_steps=40)
    assert found["language"] == pytest.approx(1.1716, abs=1e-3)
    assert all(math.isfinite(value) for value in found.values())
    assert found["student"] != found["teacher"]
    printed = capsys.readouterr().out
    assert all(f"{name} {value:.3f}" in printed for name, value in found.items())


def test_a_teacher_from_a_folder_is_distilled(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT))
    toy = importlib.import_module("examples.toy")
    sys.path.pop(0)
    trained = toy.get_teacher("llama", steps=5)
    trained.save_pretrained(tmp_path)
    found = run("raw_pytorch", teacher=str(tmp_path), steps=12)
    assert found["teacher"] == toy.surprise(trained, 2)
    assert found["student"] != found["teacher"]
    config = DiTConfig(vocab_size=10, max_length=16, hidden_size=16, num_layers=1, num_heads=2, cond_size=8)
    DiT(config).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="10"):
        run("raw_pytorch", teacher=str(tmp_path / "other"))


def test_a_protein_model_in_its_frame_is_distilled() -> None:
    found = run("masked_protein", steps=12, teacher_steps=30)
    assert all(math.isfinite(value) for value in found.values())
    assert found["student"] != found["teacher"]
    assert min(found["teacher_bound"], found["student_bound"]) > found["language"]


def test_llada_is_distilled_saved_as_adapters_loaded_and_sampled_in_blocks() -> None:
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    found = run("llada", steps=14, teacher_steps=100)
    assert found["loaded_as_student"] == 1.0
    assert found["teacher_as_student"] < 1.0


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
    single = {"rgas_on_masked_lm", "grouped_advantages_in_grpo", "grpo", "distil_bert"}
    assert names == {*DISTILLATIONS, *single, "masked_protein", "llada"}
