"""From a text to a few-step student of it: ``python -m discrete_distill.recipes.owt [STAGE] [--preset NAME] [flags]``.

Stages: all (default) | teacher | judge | distill | guide | sample | evaluate | report. Presets: demo (default, or small
where CUDA and the data are there) | demo-paper | demo-long | small | medium | large. ``--help`` lists every flag of the
preset; ``--dry-run`` prints what would run, the memory that it needs on each device, and the time expected.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .command_line import CommandLine, run_stages

if TYPE_CHECKING:
    from .settings import RecipeConfig

STAGES = ("all", "teacher", "judge", "distill", "guide", "sample", "evaluate", "report")


def default_preset() -> str:
    """The demo, unless there is a CUDA device and OpenWebText in the data-set cache."""
    import torch
    from huggingface_hub.constants import HF_HOME

    cache = Path(os.environ.get("HF_DATASETS_CACHE", Path(HF_HOME) / "datasets"))
    return "small" if torch.cuda.is_available() and any(cache.glob("*openwebtext*")) else "demo"


def _presets() -> Mapping[str, Callable[[], RecipeConfig]]:
    from .settings import PRESETS

    return PRESETS


def run_stage(stage: str, config: RecipeConfig, command: str) -> None:
    """Check everything, then run one stage or all of them."""
    from .pipeline import Pipeline

    pipeline = Pipeline(config, command)
    stages = {
        "teacher": pipeline.train_teacher,
        "judge": pipeline.train_judge,
        "distill": pipeline.distil,
        "guide": pipeline.guide,
        "sample": pipeline.sample,
        "evaluate": pipeline.evaluate,
        "report": pipeline.report,
    }
    names = ("distill", "guide", "evaluate", "report") if stage == "all" else (stage,)

    def description() -> str:
        from .dry_run import describe_run

        methods = {"distillation": config.distill}
        return describe_run(config, methods, names, pipeline.accelerator, lambda: pipeline.check(names))

    run_stages(stages, names, check=lambda: pipeline.check(names), description=description if config.dry_run else None)


COMMAND_LINE = CommandLine(
    program="python -m discrete_distill.recipes.owt",
    description=__doc__,
    stages=STAGES,
    presets=_presets,
    default_preset=lambda: default_preset(),
    run=run_stage,
)
main = COMMAND_LINE.main


if __name__ == "__main__":
    sys.exit(main())
