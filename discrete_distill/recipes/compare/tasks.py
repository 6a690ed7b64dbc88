"""Tasks with a verifier in a comparison: the same methods, each task in a folder of its own."""

from __future__ import annotations

from dataclasses import replace

from ..tasks import recipe as stages
from ..tasks.named_tasks import TaskName
from ..tasks.report import provenance, summary, title_of, write_report
from ..tasks.run import TaskRun
from ..tasks.settings import PRESETS, TaskConfig
from .settings import ComparisonConfig


class ComparedTask:
    """A task of a comparison: the recipe of tasks with the comparison's methods and seed.

    Args:
        name: of the task.
        config: of the comparison.
        command: the command line, for the report.
    """

    def __init__(self, name: TaskName, config: ComparisonConfig, command: str) -> None:
        self.config = task_config(name, config)
        self.run = TaskRun(self.config, command)

    def train(self) -> None:
        """Train a teacher where none ships, and a student by each method."""
        if not self.run.has_shipped_teacher() and not (self.run.directory / "teacher" / "config.json").exists():
            stages.make_teacher(self.run, self.config)
        stages.make_students(self.run, self.config)

    def evaluate(self) -> None:
        """Measure teacher and students."""
        stages.measure(self.run, self.config)

    def report(self) -> str:
        """Write the task's own report into its folder; return what the comparison's report says of it."""
        results = stages.results_of(self.run)
        path = write_report(self.run, results)
        return "\n\n".join(
            (
                f"## {title_of(results)}",
                provenance(self.run, results),
                summary(results),
                f"[All figures of this task]({self.run.directory.name}/{path.name})",
            )
        )


def task_config(name: TaskName, config: ComparisonConfig) -> TaskConfig:
    """The demo of the recipe of tasks, with the comparison's methods as far as that recipe has them."""
    return replace(
        PRESETS["demo"](),
        task=name,
        name=name,
        output=config.directory,
        seed=config.seed,
        precision=config.precision,
        matmul=config.matmul,
        threads=config.threads,
        methods=tuple(method for method in config.methods if method in TaskConfig.KNOWN),
        budget="network_evaluations",
        amount=config.task_evaluations,
    )
