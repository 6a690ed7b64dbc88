"""transformers' Trainer with checkpoints that are whole or not there, of any network, with tied weights or without."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_model
from torch import nn
from transformers import Trainer, TrainerState
from transformers.trainer_utils import TrainOutput

from ..models.io.hub import HubNetwork
from ..models.lora import has_lora
from .checkpoint_folders import (
    TRAINER_STATE_FILE,
    UNFINISHED,
    WEIGHTS_FILE,
    checkpoints,
    publish,
    trainer_state,
    without_aliases,
)


class CheckpointingTrainer(Trainer):
    """Writes checkpoints aside and renames them, resumes from whole ones, and trains no step beyond the last.

    Args:
        *args: of `Trainer`.
        **kwargs: of `Trainer`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._writing = False
        super().__init__(*args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train; see `Trainer.train`. ``True`` resumes from the last whole checkpoint; a finished run is only loaded.

        Raises:
            ValueError: if there is no whole checkpoint.
            FileNotFoundError: if the checkpoint is not of this class, or was cut short.
        """
        if resume_from_checkpoint is True:
            whole = list(checkpoints(Path(self.args.output_dir)).values())
            if not whole:
                raise ValueError(f"no whole checkpoint in {self.args.output_dir} to resume from")
            resume_from_checkpoint = str(whole[-1])
        if resume_from_checkpoint:
            state = trainer_state(Path(resume_from_checkpoint))
            if state is None:
                raise FileNotFoundError(f"{resume_from_checkpoint} was cut short; resume from another checkpoint")
            if 0 < self.args.max_steps <= state.get("global_step", 0):
                return self._load_finished(resume_from_checkpoint)
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def _load_finished(self, checkpoint: str) -> TrainOutput:
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_FILE))
        self.create_optimizer_and_scheduler(self.args.max_steps)
        self._load_from_checkpoint(checkpoint)
        self._load_optimizer_and_scheduler(checkpoint)
        return TrainOutput(self.state.global_step, 0.0, {})

    def _get_output_dir(self, trial: Any = None) -> str:
        run = super()._get_output_dir(trial=trial)
        return os.path.join(run, UNFINISHED) if self._writing else run

    def _save_checkpoint(self, model: nn.Module, trial: Any = None, **kwargs: Any) -> None:
        """Aside first, so that a run that is killed meanwhile leaves no torn ``checkpoint-N``."""
        run = Path(self._get_output_dir(trial))
        if self.args.should_save:
            shutil.rmtree(run / UNFINISHED, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._writing = True
        try:
            super()._save_checkpoint(model, trial, **kwargs)
        finally:
            self._writing = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            publish(run / UNFINISHED, run, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run / f"checkpoint-{self.state.global_step}"))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._writing:  # else it has not its name yet
            super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, without_aliases(self.model.state_dict() if state_dict is None else state_dict))
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save and isinstance(self.model, HubNetwork) and not has_lora(self.model):
            self.model.save_pretrained(folder)  # With its config.json, so that it can be read back alone.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        file = Path(resume_from_checkpoint) / WEIGHTS_FILE
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: {resume_from_checkpoint} was cut short, or is no checkpoint")
        load_model(self.model if model is None else model, file)
