"""Methods compared fairly: ``python -m discrete_distill.recipes.compare [STAGE] [--preset NAME] [flags]``.

Trains the chosen methods from one teacher under an equal budget, evaluates all alike, and writes a report. Stages: all
(default) | train | evaluate | report. Presets: demo (default) | quick | small | medium. ``--ablation`` compares the
published method with itself less one technique at a time. ``--help`` lists every flag of the preset.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..common.command_line import CommandLine, run_stages

if TYPE_CHECKING:
    from .settings import ComparisonConfig

STAGES = ("all", "train", "evaluate", "report")


def _presets() -> Mapping[str, Callable[[], ComparisonConfig]]:
    from .settings import PRESETS

    return PRESETS


def run_stage(stage: str, config: ComparisonConfig, command: str) -> None:
    """Check everything, then run one stage or all of them."""
    from .comparison import Comparison

    comparison = Comparison(config, command)
    stages = {"train": comparison.train, "evaluate": comparison.evaluate, "report": comparison.report}
    names = ("train", "evaluate", "report") if stage == "all" else (stage,)

    def description() -> str:
        from ..common.dry_run import describe_run
        from ..text.distill import DistillConfig

        trained = config.trained()
        methods = {name: each for name, each in trained.items() if isinstance(each, DistillConfig)}
        budget = f"budget: {config.amount:g} {config.budget} for each of {', '.join(trained)}, which sets the steps"
        plan = describe_run(
            config,
            methods,
            names,
            comparison.accelerator,
            lambda: comparison.check_stages(names),
            model=comparison.teacher_shape(),
        )
        return f"{budget}\n{plan}"

    run_stages(
        stages,
        names,
        check=lambda: comparison.check_stages(names),
        description=description if config.dry_run else None,
        hold=comparison.hold,
    )


COMMAND_LINE = CommandLine(
    program="python -m discrete_distill.recipes.compare",
    description=__doc__,
    stages=STAGES,
    presets=_presets,
    default_preset=lambda: "demo",
    run=run_stage,
)
main = COMMAND_LINE.main


if __name__ == "__main__":
    sys.exit(main())
