"""Proteins in few steps: ``python -m discrete_distill.recipes.protein [STAGE] [flags]``.

Stages: all (default: distill, guide, evaluate, report) | teacher | distill | guide | sample | evaluate | report.
Without flags it takes the bundled sequences (UniProt) and teacher. ``--help`` lists every flag.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..common.command_line import CommandLine

if TYPE_CHECKING:
    from .settings import ProteinConfig

STAGES = ("all", "teacher", "distill", "guide", "sample", "evaluate", "report")


def _presets() -> Mapping[str, Callable[[], ProteinConfig]]:
    from .settings import PRESETS

    return PRESETS


def run_stage(stage: str, config: ProteinConfig, command: str) -> None:
    """Check everything, then run one stage or all of them."""
    from .pipeline import ProteinPipeline

    ProteinPipeline(config, command).run(stage)


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
