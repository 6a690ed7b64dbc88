"""Checkpoints of transformers' Trainer: whole or not there, and none trained beyond its end."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from students import Rows, trainer, weights_of
from transformers.trainer_utils import get_last_checkpoint


@pytest.fixture(autouse=True)
def own_process_state() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_run_killed_inside_its_save_leaves_no_torn_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(tmp_path, save_strategy="steps", save_steps=2)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(made, "_save_rng_state", killed)
        with pytest.raises(KeyboardInterrupt):
            made.train()
    assert get_last_checkpoint(str(tmp_path)) is None
    again = trainer(tmp_path, save_strategy="steps", save_steps=2)
    again.train()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text('{"global')  # as an earlier version left it
    resumed = trainer(tmp_path)
    with pytest.raises(FileNotFoundError):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    resumed.train(resume_from_checkpoint=True)
    for name, value in weights_of(again.model).items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    shutil.rmtree(tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match="no whole checkpoint"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def test_old_checkpoints_are_removed_and_the_last_is_kept(tmp_path: Path) -> None:
    trainer(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=2).train()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-4"]


def test_a_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    made = trainer(tmp_path, data=Rows(), save_strategy="steps", save_steps=4)
    made.train()
    again = trainer(tmp_path, data=Rows())
    out = again.train(resume_from_checkpoint=True)
    assert out.global_step == again.state.global_step == 4
    for mine, expected in (
        (again.model, made.model),
        (again.averaged_student, made.averaged_student),
        (again.module_optimizers["auxiliary"].module, made.module_optimizers["auxiliary"].module),
    ):
        for name, value in weights_of(expected).items():
            assert torch.equal(mine.state_dict()[name], value), name
    more = trainer(tmp_path, data=Rows(), max_steps=5)
    assert more.train(resume_from_checkpoint=True).global_step == 5


def test_what_is_pushed_is_a_finished_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[str] = []

    def push(_: Any, folder: str) -> None:
        assert (Path(folder) / "trainer_state.json").is_file()
        pushed.append(Path(folder).name)

    monkeypatch.setattr(transformers.Trainer, "_push_from_checkpoint", push)
    made = trainer(tmp_path, save_strategy="steps", save_steps=2)
    made.args.push_to_hub = True
    made.train()
    assert pushed == ["checkpoint-2", "checkpoint-4"]
