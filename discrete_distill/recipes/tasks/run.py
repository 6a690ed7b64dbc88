"""A run over a task: its tokens, its solved examples, and the teacher that belongs to it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from ..common.assets import BUNDLED, asset
from ..common.fingerprint import read_fingerprint
from ..common.network_shape import network_shape
from ..common.run import Run
from ..common.teacher import external_config, load_network
from .named_tasks import SymbolTokenizer
from .settings import TaskConfig
from .stream import TaskStream


class TaskRun(Run):
    """What the stages share; see `Run`.

    Args:
        config: settings of the recipe.
        command: the command line, for the report.

    Attributes:
        named: the task.
    """

    def __init__(self, config: TaskConfig, command: str) -> None:
        self.named = config.named_task()
        self.stream = TaskStream(self.named)
        super().__init__(
            config,
            command,
            lambda: SymbolTokenizer(self.named),
            bundled_teacher=f"{self.named.name}-{self.named.size}",
        )

    @cached_property
    def streams(self) -> Any:
        """The same solved examples in the place of each split."""
        return {"train": self.stream, "heldout": self.stream}

    def check_process(self) -> None:
        """Refuse to start in several processes."""
        if self.accelerator.num_processes > 1:
            raise ValueError(
                "tasks are distilled and measured in one process, so that budgets and draws are those of one"
            )

    def has_shipped_teacher(self) -> bool:
        """Whether the package has a teacher of this task."""
        try:
            return bool(asset(self.bundled_teacher))
        except FileNotFoundError:
            return False

    def teacher_location(self, path: str) -> str:
        """Where the teacher is; without a path, the one that this run trained, or else the shipped one."""
        own = self.directory / "teacher"
        if not path:
            path = str(own) if (own / "config.json").exists() or not self.has_shipped_teacher() else BUNDLED
        return super().teacher_location(path)

    def load_teacher(self) -> Any:
        """The teacher of ``--teacher.path``, in any layout that `load_denoiser` reads, on the device.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is of another task, by its vocabulary, its mask, its length, or the task that its folder
                names; or nothing says how it is called.
        """
        location = self.teacher_location(self.config.teacher.path)
        teacher = load_network(location, **self.config.teacher.called())
        shape, named = network_shape(teacher), self.named
        mask = (external_config(location) or {}).get("mask_token_id")
        problem = ""
        if shape.vocab_size == named.mask_token_id:
            problem = f"has {shape.vocab_size} classes, and none for the mask, which is token {named.mask_token_id}"
        elif shape.vocab_size != self.tokenizer.vocab_size:
            problem = f"has {shape.vocab_size} classes, and the task {self.tokenizer.vocab_size} with the mask"
        elif mask not in (None, named.mask_token_id):
            problem = (
                f"states token {mask} as its mask, and the mask of the task is the last one, {named.mask_token_id}"
            )
        elif shape.max_length is not None and shape.max_length < named.length:
            problem = f"reads {shape.max_length} tokens, and the task has {named.length}"
        elif read_fingerprint(location) not in (None, self.tokenizer.fingerprint()):
            problem = "was trained on another task"
        if problem:
            raise ValueError(
                f"the teacher of {location} {problem}: give --teacher.path a teacher of {named.name} of size "
                f"{named.size}, or train one by the stage teacher"
            )
        return teacher.to(self.accelerator.device)
