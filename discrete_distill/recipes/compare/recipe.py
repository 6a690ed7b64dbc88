"""The comparison as a recipe: train, evaluate, report."""

from __future__ import annotations

from functools import partial

from ..common.distill_config import DistillConfig
from ..common.stages import Recipe, Stage
from ..text.judge_loading import find_judge
from .comparison import Comparison
from .settings import ComparisonConfig


def make_recipe(config: ComparisonConfig, command: str) -> Recipe:
    """Compose the recipe."""
    comparison = Comparison(config, command)
    common = (comparison.check_process, comparison.check_teacher, comparison.check_autoregressive)
    trained = config.trained()
    return Recipe(
        run=comparison.run,
        stages={
            "train": Stage(run=comparison.train, needs=common, may_round=True),
            "evaluate": Stage(
                run=comparison.evaluate,
                needs=(*common, partial(find_judge, config.judge.path), comparison.judges, comparison.check_texts),
                inputs=(comparison.check_costs,),
            ),
            "judge": Stage(
                run=comparison.judge, needs=(comparison.further_judges,), inputs=(comparison.check_samples,)
            ),
            "report": Stage(run=comparison.report, inputs=(comparison.results,), reads_corpus=False),
        },
        default=("train", "evaluate", "report"),
        distillations={name: each for name, each in trained.items() if isinstance(each, DistillConfig)},
        note=f"budget: {config.amount:g} {config.budget} for each of {', '.join(trained)}, which sets the steps"
        + "".join(f"; {task.config.task}: {task.config.amount:g} network evaluations" for task in comparison.tasks),
    )
