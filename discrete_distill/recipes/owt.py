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

from .common.command_line import CommandLine

if TYPE_CHECKING:
    from .text.settings import RecipeConfig

STAGES = ("all", "teacher", "judge", "distill", "guide", "sample", "evaluate", "report")


def default_preset() -> str:
    """The demo, unless there is a CUDA device and OpenWebText in the data-set cache."""
    import torch
    from huggingface_hub.constants import HF_HOME

    cache = Path(os.environ.get("HF_DATASETS_CACHE", Path(HF_HOME) / "datasets"))
    return "small" if torch.cuda.is_available() and any(cache.glob("*openwebtext*")) else "demo"


def _presets() -> Mapping[str, Callable[[], RecipeConfig]]:
    from .text.settings import PRESETS

    return PRESETS


def run_stage(stage: str, config: RecipeConfig, command: str) -> None:
    """Check everything, then run one stage or all of them."""
    from .text.pipeline import Pipeline

    Pipeline(config, command).run(stage)


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
