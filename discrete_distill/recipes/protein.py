"""Proteins in few steps: ``python -m discrete_distill.recipes.protein [STAGE] [flags]``.

Stages: all (default: distill, evaluate, report) | teacher | distill | sample | evaluate | report. Without flags it
takes the bundled sequences (UniProt) and teacher. ``--help`` lists every flag.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from .command_line import CommandLine, run_stages

if TYPE_CHECKING:
    from .protein_settings import ProteinConfig

STAGES = ("all", "teacher", "distill", "sample", "evaluate", "report")


def _presets() -> Mapping[str, Callable[[], ProteinConfig]]:
    from .protein_settings import PRESETS

    return PRESETS


def run_stage(stage: str, config: ProteinConfig, command: str) -> None:
    """Check everything, then run one stage or all of them."""
    from .protein_pipeline import ProteinPipeline

    pipeline = ProteinPipeline(config, command)
    stages = {
        "teacher": pipeline.train_teacher,
        "distill": pipeline.distil,
        "sample": pipeline.sample,
        "evaluate": pipeline.evaluate,
        "report": pipeline.report,
    }
    names = ("distill", "evaluate", "report") if stage == "all" else (stage,)

    def description() -> str:
        from .dry_run import describe_run

        methods = {"distillation": config.distill}
        return describe_run(config, methods, names, pipeline.accelerator, lambda: pipeline.check(names))

    run_stages(stages, names, check=lambda: pipeline.check(names), description=description if config.dry_run else None)


COMMAND_LINE = CommandLine(
    program="python -m discrete_distill.recipes.protein",
    description=__doc__,
    stages=STAGES,
    presets=_presets,
    default_preset=lambda: "demo",
    run=run_stage,
)
main = COMMAND_LINE.main


if __name__ == "__main__":
    sys.exit(main())
