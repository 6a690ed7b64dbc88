"""Recipes as named stages: what each needs is looked for before the first of them starts or writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .assets import BUNDLED
from .distill_config import DistillConfig
from .dry_run import describe_run
from .environment import make_folder, matmul_precision
from .network_shape import NetworkShape, network_shape
from .run import Run
from .stage_clock import StageClock

Need = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        run: does it.
        needs: each is called before the first stage starts, and raises ValueError or OSError if something is missing.
        inputs: likewise, where this stage is the first: stages before it would write what these look for.
        reads_corpus: whether the stage reads token streams.
        writes: whether the stage writes into the folder of the run, which is then held.
        may_round: whether ``--matmul tf32`` is in force; figures of a judge must not depend on it.
        evaluations: passes of one sequence through a network of the teacher's shape, a backward pass counted as two;
            None where they are not known, or take no time that matters.
    """

    run: Callable[[], object]
    needs: tuple[Need, ...] = ()
    inputs: tuple[Need, ...] = ()
    reads_corpus: bool = True
    writes: bool = True
    may_round: bool = False
    evaluations: Callable[[NetworkShape], float] | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run and its stages.

    Attributes:
        run: folder, corpus, networks and device.
        stages: by name.
        default: names of those that the stage "all" runs, in order.
        distillations: what ``--dry-run`` estimates, by name.
        note: first line of ``--dry-run``; none if empty.
    """

    run: Run
    stages: Mapping[str, Stage]
    default: tuple[str, ...]
    distillations: Mapping[str, DistillConfig] = field(default_factory=dict)
    note: str = ""

    def execute(self, stage: str) -> None:
        """Check everything, then run one stage, or those of "all"; or only print what would run.

        Raises:
            ValueError: naming all that is missing or does not fit, each with its flag.
        """
        names = self.default if stage == "all" else (stage,)
        if self.run.config.dry_run:
            print(self.description(names))
            return
        self.check(names)
        run = self.run
        with run.hold() if self.stages[names[0]].writes else nullcontext():
            run.clock = self.expected_times(names)
            if run.clock.expected and run.accelerator.is_main_process:
                print(run.clock.plan(), flush=True)
            for name in names:
                each = self.stages[name]
                with run.clock.stage(name), matmul_precision(self.run.config.matmul if each.may_round else "exact"):
                    each.run()

    def expected_times(self, names: Sequence[str]) -> StageClock:
        """Time one pass of the teacher, and multiply it by the passes of each stage; of several stages alone."""
        timed = [name for name in names if self.stages[name].evaluations is not None]
        if len(timed) < 2:
            return StageClock()
        teacher = self.run.load_teacher()
        one, shape = self.run.seconds_per_evaluation(teacher), network_shape(teacher)
        works = {name: self.stages[name].evaluations for name in names}
        return StageClock({name: one * work(shape) if work else 0.0 for name, work in works.items()})

    def check(self, names: Sequence[str]) -> None:
        """Look for everything that the stages will need."""
        run, chosen = self.run, [self.stages[name] for name in names]
        needs: list[Need] = [lambda: run.tokenizer]
        needs += [need for stage in chosen for need in stage.needs]
        needs += chosen[0].inputs
        if chosen[0].writes:
            needs.append(lambda: make_folder(run.directory, only_check=True))
        problems = [problem for problem in map(problem_of, needs) if problem]
        if not problems and chosen[0].reads_corpus:
            problems = [problem for problem in [problem_of(lambda: run.streams)] if problem]
        elif problems and run.config.data.source != BUNDLED and not Path(run.config.data.source).exists():
            problems += [problem for problem in [problem_of(run.documents)] if problem]
        if problems:
            raise ValueError("; ".join(dict.fromkeys(problems)))

    def description(self, names: Sequence[str]) -> str:
        """What ``--dry-run`` prints."""
        run = self.run
        plan = describe_run(
            run.config,
            self.distillations if {"distill", "train"} & set(names) else {},
            names,
            run.accelerator,
            lambda: self.check(names),
            model=run.initial_shape() if tuple(names) == ("teacher",) else run.teacher_shape(),
        )
        return "\n".join(filter(None, [self.note, plan]))


def problem_of(need: Need) -> str | None:
    """What is wrong with something that is needed, on one line, or None."""
    try:
        need()
    except (ValueError, OSError) as error:
        return " ".join(str(error).split())
    return None
