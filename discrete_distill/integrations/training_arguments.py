"""Arguments of the Trainer of distillation methods."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import TrainingArguments

from ..samplers import Frame


@dataclass
class DiDiInstructTrainingArguments(TrainingArguments):
    """Transformers' own arguments are the student's; these are added.

    Args:
        length: tokens of a student path, or a `Frame` of fixed tokens around them; that of the data set's rows where
            there is one.
        ratio_learning_rate: of discriminator and auxiliary denoiser.
        ratio_warmup_steps: of that rate, in updates of theirs.
        discriminator_every: student steps between its updates.
        ema_decay: of the student's moving average; 0 for none.
        stop_on_collapse: updates for which the samples of a batch may be alike before training stops, looked at with
            every line of the log (see `mode_collapse`); a checkpoint is saved when they are first. 0 goes on.
    """

    length: int = field(default=128, metadata={"help": "tokens of a student path"})
    ratio_learning_rate: float = field(default=1e-5, metadata={"help": "of discriminator and auxiliary denoiser"})
    ratio_warmup_steps: int = field(default=0, metadata={"help": "of that rate"})
    discriminator_every: int = field(default=1, metadata={"help": "student steps between its updates"})
    ema_decay: float = field(default=0.999, metadata={"help": "of the student's moving average; 0 for none"})
    stop_on_collapse: int = field(default=100, metadata={"help": "updates of samples that are alike; 0 goes on"})
    # Rows reach the loss as they are; and processes may call a network unequally often, so buffers stay at home.
    remove_unused_columns: bool | None = False
    ddp_broadcast_buffers: bool | None = False

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments as values that JSON can hold; a `Frame` is written as a mapping of its fields."""
        length: Any = self.length
        return {**super().to_dict(), "length": asdict(length) if isinstance(length, Frame) else length}
