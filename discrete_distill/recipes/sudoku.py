"""Tasks with a verifier in few steps: ``python -m discrete_distill.recipes.sudoku [STAGE] [--preset NAME] [flags]``.

Stages: all (default: a teacher where none ships, distill, evaluate, report) | teacher | distill | evaluate | report |
sample. Presets: demo (default) | long. ``--task permutations`` (or brackets, countdown, arithmetic) takes another task
than Sudoku. ``--help`` lists every flag; ``--dry-run`` prints what would run.
"""

from __future__ import annotations

import sys

from .common.command_line import CommandLine

COMMAND_LINE = CommandLine(
    program="discrete_distill.recipes.sudoku",
    description=__doc__,
    stages=("all", "teacher", "distill", "evaluate", "report", "sample"),
    package="discrete_distill.recipes.tasks",
)
main = COMMAND_LINE.main


if __name__ == "__main__":
    sys.exit(main())
