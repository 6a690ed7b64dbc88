"""Proteins in few steps: ``python -m discrete_distill.recipes.protein [STAGE] [flags]``.

Stages: all (default: distill, discriminator, evaluate, report) | teacher | distill | discriminator | sample | evaluate
| report. Without flags it takes the bundled sequences (UniProt) and teacher. ``--help`` lists every flag.
"""

from __future__ import annotations

import sys

from ..common.command_line import CommandLine

COMMAND_LINE = CommandLine(
    program="discrete_distill.recipes.protein",
    description=__doc__,
    stages=("all", "teacher", "distill", "discriminator", "sample", "evaluate", "report"),
    package="discrete_distill.recipes.protein",
)
main = COMMAND_LINE.main


if __name__ == "__main__":
    sys.exit(main())
