"""The recipe of tasks: train a teacher and students, measure accuracy, report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markdown import Markdown

from ...digests import weights_digest
from ...training import flat_settings
from ..common.budgeted_training import train_within_budget
from ..common.distill import Distillation
from ..common.distill_config import DistillConfig
from ..common.environment import make_folder
from ..common.results import read_results, write_results
from ..common.stages import Recipe, Stage
from ..common.students import save_student
from ..common.teacher import load_teacher, train_teacher
from ..common.teacher_check import check_teacher
from .decoding import decodings
from .evaluate import RESULTS, evaluate, prompt_sets
from .report import summary, write_report
from .run import TaskRun
from .settings import TaskConfig
from .solve import check_puzzles, solve

RESULTS_FILE, COSTS_FILE = "evaluation.json", "costs.json"


def make_recipe(config: TaskConfig, command: str) -> Recipe:
    """Compose the recipe."""
    run = TaskRun(config, command)
    trained = config.trained()
    own = not config.teacher.path and not run.has_shipped_teacher()
    counted = config.budget == "network_evaluations" and not own  # Without a teacher there is nothing to time.
    return Recipe(
        run=run,
        stages={
            "teacher": Stage(run=partial(make_teacher, run, config), reads_corpus=False, may_round=True),
            "distill": Stage(
                run=partial(make_students, run, config),
                needs=(run.check_process,),
                inputs=(partial(check_teachers, run, trained),),
                reads_corpus=False,
                may_round=True,
                evaluations=(lambda model: config.amount * len(trained)) if counted else None,
            ),
            "evaluate": Stage(
                run=partial(measure, run, config),
                needs=(run.check_process,),
                inputs=(run.load_teacher, partial(load_students, run, config)),
                reads_corpus=False,
                evaluations=(lambda model: sampling_evaluations(run, config)) if counted else None,
            ),
            "report": Stage(run=partial(report, run), inputs=(partial(results_of, run),), reads_corpus=False),
            "sample": Stage(
                run=partial(solve, run, config.sample),
                needs=(partial(check_puzzles, run, config.sample),),
                reads_corpus=False,
                writes=False,
            ),
        },
        default=(*(("teacher",) if own else ()), "distill", "evaluate", "report"),
        distillations=trained,
        note=f"task: {run.named.name} of size {run.named.size}; budget: {config.amount:g} {config.budget} for each of "
        f"{', '.join(trained)}, which sets the steps",
    )


def sampling_evaluations(run: TaskRun, config: TaskConfig) -> float:
    """Passes of one sequence in the evaluation, if samplers without a grid spare half of the steps."""
    length, measured = run.named.answer_length, config.measure
    steps = sum(each.num_steps or length / 2 for each in decodings(run.process, measured, length))
    return steps * measured.num_prompts * len(prompt_sets(run, measured)) * (1 + len(config.methods))


def check_teachers(run: TaskRun, trained: Mapping[str, DistillConfig]) -> None:
    """Refuse a teacher that is missing, of another task, or that a method cannot distil."""
    teacher = run.load_teacher()
    for config in trained.values():
        check_teacher(config, teacher)


def make_teacher(run: TaskRun, config: TaskConfig) -> None:
    """Train a teacher on solved examples; it goes to ``teacher/``."""
    folder = make_folder(run.directory / "teacher")
    torch.manual_seed(config.teacher.loop.seed)
    if config.teacher.init:
        network: torch.nn.Module = load_teacher(config.teacher.init)
    else:
        network = run.named.new_network(config.teacher.model)
    train_teacher(config.teacher, run.streams, run.process, run.accelerator, folder, network=network)
    run.write_fingerprint(folder)
    print(f"teacher: {folder}")


def student_folder(run: TaskRun, name: str) -> Path:
    """Folder of the training of one method."""
    return run.directory / name


def make_students(run: TaskRun, config: TaskConfig) -> None:
    """Distil the teacher by every method, each within the budget; costs go to ``costs.json`` as each ends."""
    teacher, folder = run.load_teacher(), make_folder(run.directory)
    costs: dict[str, Any] = {}
    for name, method in config.trained().items():

        def make(num_steps: int, method: DistillConfig = method) -> Distillation:
            torch.manual_seed(config.seed)
            sized = replace(method, loop=replace(method.loop, num_steps=num_steps, seed=config.seed))
            return Distillation(sized, teacher, run.stream, run.process, run.accelerator)

        own = student_folder(run, name)
        trained = train_within_budget(
            run,
            make,
            config.budget,
            config.amount,
            name=name,
            loop=method.loop,
            seed=config.seed,
            folder=own,
            plan_file=own / "plan.json",
            settings={
                **flat_settings(method, name, leave_out=(f"{name}.loop", f"{name}.parallel")),
                "teacher": weights_digest(teacher),
                **run.stream.settings(),
            },
        )
        save_student(trained.training, own / "student")
        run.write_fingerprint(own / "student")
        costs[name] = asdict(trained.cost)
        if run.accelerator.is_main_process:
            write_results(folder / COSTS_FILE, costs)


def load_students(run: TaskRun, config: TaskConfig) -> dict[str, Any]:
    """The trained students, by name."""
    return {name: run.load_student(student_folder(run, name) / "student")[0] for name in config.methods}


def measure(run: TaskRun, config: TaskConfig) -> None:
    """Measure teacher and students; figures go to ``evaluation.json``."""
    networks = {"teacher": run.load_teacher(), **load_students(run, config)}
    costs = read_results(run.directory / COSTS_FILE, {}, stage="distill")
    results = {**evaluate(run, config.measure, networks), "training": costs}
    results |= {"budget": config.budget, "amount": config.amount}
    write_results(make_folder(run.directory) / RESULTS_FILE, results)


def report(run: TaskRun) -> None:
    """Write ``report.md`` and its plot, and print the summary."""
    results = results_of(run)
    path = write_report(run, results)
    Console(width=80).print(Markdown(summary(results)))
    print(path)


def results_of(run: TaskRun) -> dict[str, Any]:
    """Figures that the evaluation stage wrote."""
    return read_results(run.directory / RESULTS_FILE, RESULTS)
