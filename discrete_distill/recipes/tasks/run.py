"""A run over a task: its tokens, its solved examples, and the teacher that belongs to it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from ...models import DiT
from ..common.assets import BUNDLED, asset
from ..common.fingerprint import read_fingerprint
from ..common.run import Run
from ..common.teacher import load_teacher
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

    def load_teacher(self) -> DiT:
        """The teacher, on the device.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is of another task, by its vocabulary, its length, or the task that its folder names.
        """
        location = self.teacher_location(self.config.teacher.path)
        teacher = load_teacher(location)
        found = (teacher.config.vocab_size, teacher.config.max_length)
        named = self.named
        remedy = "give --teacher.path a teacher of this task and size, or train one by the stage teacher"
        if found != (self.tokenizer.vocab_size, named.length):
            raise ValueError(
                f"the teacher of {location} has {found[0]} classes and a length of {found[1]}, and {named.name} of "
                f"size {named.size} has {self.tokenizer.vocab_size} and {named.length}; {remedy}"
            )
        if read_fingerprint(location) not in (None, self.tokenizer.fingerprint()):
            raise ValueError(
                f"the teacher of {location} was trained on another task than {named.name} of size {named.size}; "
                f"{remedy}"
            )
        return teacher.to(self.accelerator.device)
