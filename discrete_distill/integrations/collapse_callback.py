"""Mode collapse in transformers' `Trainer`: a warning and a checkpoint when it appears, an end when it stays."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils.logging import get_logger

from ..checks import check_count
from ..training import mode_collapse
from ..training.mode_collapse import stop_if_collapsed

logger = get_logger(__name__)


class CollapseCallback(TrainerCallback):
    """Looks for `mode_collapse` with every line of the log that holds metrics of student paths.

    Args:
        stop_after: updates for which the sign may stand; 0 for any number.

    Raises:
        ValueError: if ``stop_after`` is negative.
        TrainingCollapsed: from the Trainer, unless the run is over anyway.
    """

    def __init__(self, stop_after: int) -> None:
        check_count("stop_on_collapse", stop_after, minimum=0)
        self.stop_after = stop_after

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Warn once, request a checkpoint unless none are saved, and stop after ``stop_after`` updates."""
        history = [line for line in state.log_history if "loss" in line]
        if not history or history[-1]["step"] != state.global_step:
            return
        sign = mode_collapse(history)
        if sign is not None and sign.is_new:
            control.should_save |= args.save_strategy != "no"
            if state.is_world_process_zero:
                logger.warning(str(sign))
        if state.global_step < state.max_steps:
            stop_if_collapsed(sign, self.stop_after)
