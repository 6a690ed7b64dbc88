"""SDTT in transformers' Trainer: rounds, prompts and padding, micro-batches, and a run that goes on."""

from pathlib import Path

import pytest
import torch
from students import MASK, Rows, trainer, weights_of
from transformers import TrainerCallback

from discrete_distill import SDTT, SDTTConfig

CONFIG = SDTTConfig(teacher_steps=8, factor=2, rounds=2)


class Teachers(TrainerCallback):
    """The teacher of every step."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.method: SDTT | None = None

    def on_step_end(self, args, state, control, **_) -> None:
        assert self.method is not None
        self.seen.append(id(self.method.teacher))


@pytest.mark.parametrize("kind", ["dit", "bert"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_of_a_round_is_the_teacher_of_the_next(kind: str, accumulate: int, tmp_path: Path) -> None:
    made = trainer(tmp_path, kind, CONFIG, Rows((8, 5), prompt=2), gradient_accumulation_steps=accumulate)
    watch = Teachers()
    watch.method = made.method
    made.add_callback(watch)
    before = weights_of(made.model)
    made.train()
    first, second = watch.seen[0], watch.seen[-1]
    assert watch.seen == [first, first, second, second]
    assert first == id(made.teacher) != second
    assert any(not torch.equal(value, before[name]) for name, value in weights_of(made.model).items())
    assert [line["round"] for line in made.state.log_history if "round" in line] == [0.0, 0.0, 1.0, 1.0]


def test_given_tokens_and_padding_have_no_targets(tmp_path: Path) -> None:
    rows = Rows((8, 5), prompt=2)
    made = trainer(tmp_path, "dit", CONFIG, rows, max_steps=1)
    seen, inner = [], made.method.targets

    def targets(x_t, *args, **given):
        seen.append(out := inner(x_t, *args, **given))
        return out

    made.method.targets = targets
    made.train()
    mask = seen[0].loss_mask
    assert bool(mask.any())
    assert not bool(mask[:, :2].any())
    assert not bool((mask & ~seen[0].attention_mask.bool()).any())
    assert torch.equal(mask, seen[0].x_t == MASK)


def test_a_run_that_goes_on_in_the_second_round_is_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", "dit", CONFIG, Rows())
    whole.train()
    part = trainer(tmp_path / "part", "dit", CONFIG, Rows(), save_strategy="steps", save_steps=3)
    part.train()
    again = trainer(tmp_path / "part", "dit", CONFIG, Rows(), save_strategy="steps", save_steps=3)
    again.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-3"))
    assert again.method.round == 1
    for name, value in weights_of(whole.model).items():
        torch.testing.assert_close(again.model.state_dict()[name], value, rtol=0, atol=0)


def test_a_method_that_corrupts_data_needs_some(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train_dataset"):
        trainer(tmp_path, "dit", CONFIG)
