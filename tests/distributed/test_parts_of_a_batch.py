"""Prompt lengths, padding, micro-batches and ranks change no gradient, in the recipe's loop and in the Trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from ragged_batch import config_of, gradients_of_the_loop, gradients_of_the_trainer, greatest_gap
from torch import Tensor

CHOICES = [("auxiliary", "leave_one_out"), ("auxiliary", "batch"), ("discriminator", "leave_one_out")]


@pytest.fixture(autouse=True)
def own_process_state() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


def gradients(loop: str, config: Any, parts: int, folder: Path, **more: Any) -> dict[str, Tensor]:
    if loop == "recipe":
        return gradients_of_the_loop(config, parts, **more)
    return gradients_of_the_trainer(config, parts, folder, **more)


@pytest.mark.parametrize("loop", ["recipe", "trainer"])
@pytest.mark.parametrize(("ratio", "baseline"), CHOICES)
def test_micro_batches_have_the_gradient_of_the_batch(loop: str, ratio: str, baseline: str, tmp_path: Path) -> None:
    """Micro-batches hold unlike numbers of tokens. Rewards are scaled by the whole batch, and some advantages clipped;
    a discriminator that gives the reward is updated before it does."""
    config = config_of(ratio, baseline)
    whole = gradients(loop, config, 1, tmp_path)
    assert {name.split(".")[0] for name in whole} == {"student", ratio}
    for parts in (2, 4):
        assert greatest_gap(gradients(loop, config, parts, tmp_path), whole) < 1e-6


@pytest.mark.parametrize("loop", ["recipe", "trainer"])
def test_what_stands_in_padding_changes_no_gradient(loop: str, tmp_path: Path) -> None:
    config = config_of("auxiliary")
    for parts in (1, 2):
        zeros, sevens = (gradients(loop, config, parts, tmp_path, padding=token) for token in (0, 7))
        assert greatest_gap(sevens, zeros) < 1e-6


def test_both_loops_have_one_gradient(tmp_path: Path) -> None:
    for ratio in ("auxiliary", "discriminator"):
        config = config_of(ratio)
        loops = (gradients(loop, config, 2, tmp_path) for loop in ("recipe", "trainer"))
        torch.testing.assert_close(*(dict(sorted(found.items())) for found in loops))
