"""From a text to a few-step student of it: ``python -m discrete_distill.recipes.owt [STAGE] [--preset NAME] [flags]``.

Stages: all (default) | teacher | judge | distill | discriminator | sample | evaluate | report. Presets: demo (default,
or small where CUDA and the data are there) | demo-paper | demo-long | small | medium | large. ``--help`` lists every
flag of the preset; ``--dry-run`` prints what would run, the memory that it needs on each device, and the time expected.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .common.command_line import CommandLine


def default_preset() -> str:
    """The demo, unless there is a CUDA device and OpenWebText in the data-set cache."""
    import torch
    from huggingface_hub.constants import HF_HOME

    cache = Path(os.environ.get("HF_DATASETS_CACHE", Path(HF_HOME) / "datasets"))
    return "small" if torch.cuda.is_available() and any(cache.glob("*openwebtext*")) else "demo"


COMMAND_LINE = CommandLine(
    program="discrete_distill.recipes.owt",
    description=__doc__,
    stages=("all", "teacher", "judge", "distill", "discriminator", "sample", "evaluate", "report"),
    package="discrete_distill.recipes.text",
    default_preset=default_preset,
)
main = COMMAND_LINE.main


if __name__ == "__main__":
    sys.exit(main())
