"""From a text to a few-step student of it: ``python -m discrete_distill.recipes.owt [STAGE] [--preset NAME] [flags]``.

Stages: all (default) | teacher | judge | distill | sample | evaluate | report. Presets: demo (default, or
small where CUDA and the data are there) | demo-paper | demo-long | small | medium. ``--help`` lists every flag of
the preset.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .settings import RecipeConfig

PROGRAM = "python -m discrete_distill.recipes.owt"
STAGES = ("all", "teacher", "judge", "distill", "sample", "evaluate", "report")
USER_ERROR, INTERRUPTED = 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code is 0, 2 for bad input or a run that diverged, or 130 after an interruption
    that was saved."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        stage, preset, flags = split_arguments(arguments)
        config = parse_config(preset, flags)
        run_stage(stage, config, shlex.join([*PROGRAM.split(), *arguments]))
    except BrokenPipeError:  # Whoever read our output has seen enough.
        return 0
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt as interruption:
        print(f"\n{interruption or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED
    return 0


def split_arguments(arguments: list[str]) -> tuple[str, str, list[str]]:
    """Stage, preset, and what is left for the flags.

    Raises:
        ValueError: for an unknown stage or preset.
    """
    from .settings import PRESETS

    rest = list(arguments)
    stage = rest.pop(0) if rest and not rest[0].startswith("-") else "all"
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}; choose one of {', '.join(STAGES)}")
    preset = default_preset()
    for index, argument in enumerate(rest):
        if argument == "--preset" and index + 1 < len(rest):
            preset, rest = rest[index + 1], rest[:index] + rest[index + 2 :]
            break
        if argument.startswith("--preset="):
            preset, rest = argument.removeprefix("--preset="), rest[:index] + rest[index + 1 :]
            break
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    return stage, preset, rest


def default_preset() -> str:
    """The demo, unless there is a CUDA device and OpenWebText in the data-set cache."""
    import torch
    from huggingface_hub.constants import HF_HOME

    cache = Path(os.environ.get("HF_DATASETS_CACHE", Path(HF_HOME) / "datasets"))
    return "small" if torch.cuda.is_available() and any(cache.glob("*openwebtext*")) else "demo"


def parse_config(preset: str, flags: list[str]) -> RecipeConfig:
    """The preset with the flags applied; tyro prints help.

    Raises:
        ValueError: for a flag that is unknown or out of range, with tyro's complaint on one line.
    """
    import tyro

    from .settings import PRESETS, RecipeConfig

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(RecipeConfig, default=PRESETS[preset](), args=flags, prog=PROGRAM, description=__doc__)
    except SystemExit as ended:
        if not ended.code:
            raise
        words = re.sub(r"[│╭╮╰╯─]+|\x1b\[[0-9;]*m", " ", complaint.getvalue()).split()
        raise ValueError(" ".join(words)) from None


def run_stage(stage: str, config: RecipeConfig, command: str) -> None:
    """Check everything, then run one stage or all of them."""
    from .pipeline import Pipeline

    pipeline = Pipeline(config, command)
    stages = {
        "teacher": pipeline.train_teacher,
        "judge": pipeline.train_judge,
        "distill": pipeline.distil,
        "sample": pipeline.sample,
        "evaluate": pipeline.evaluate,
        "report": pipeline.report,
    }
    names = ("distill", "evaluate", "report") if stage == "all" else (stage,)
    pipeline.check(names)
    for name in names:
        stages[name]()


if __name__ == "__main__":
    sys.exit(main())
