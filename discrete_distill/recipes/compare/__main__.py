"""Methods compared fairly: ``python -m discrete_distill.recipes.compare [STAGE] [--preset NAME] [flags]``.

Trains the chosen methods from one teacher under an equal budget, evaluates all alike, and writes a report. Stages: all
(default) | train | evaluate | judge (the samples of the evaluation, by ``--extra-judges``) | report. Presets: demo
(default) | quick | small | medium. ``--ablation`` compares the published method with itself less one technique at a
time. ``--help`` lists every flag of the preset.
"""

from __future__ import annotations

import sys

from ..common.command_line import CommandLine

COMMAND_LINE = CommandLine(
    program="discrete_distill.recipes.compare",
    description=__doc__,
    stages=("all", "train", "evaluate", "judge", "report"),
    package="discrete_distill.recipes.compare",
)
main = COMMAND_LINE.main


if __name__ == "__main__":
    sys.exit(main())
