"""The evaluation stage: teacher and student by steps, on the frontier, and at equal cost; all figures go to one
file."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from ...evaluation import Judge, generative_perplexity, measure_diversity, measure_speeds
from ...files import read_json_object
from ...models import guide_by_prior
from ...training import flat_settings
from ...training.stored_settings import Setting
from ..common.distill import SETTINGS_FILE
from ..common.environment import make_folder
from ..common.evaluation import RESULTS_FILE, EvaluateConfig, Evaluation, SamplerSpec, between_samples_of_data
from ..common.results import write_results
from ..common.run import Run

RESULTS: dict[str, type] = {
    "judge": str, "precision": str, "num_samples": int, "seeds": list, "data": dict, "by_steps": list,
    "frontiers": list, "samples": dict, "speed": list, "seconds": float,
}  # fmt: skip


def evaluate(run: Run, judge: Judge) -> dict[str, Any]:
    """Measure teacher and student, and write ``evaluation.json``. Processes share the work and all return the same
    figures, but for speeds, which are those of each.

    Args:
        run: of the recipe.
        judge: of perplexity.

    Returns:
        What was written.
    """
    started, config, settings = time.perf_counter(), run.config.evaluate, settings_used(run)
    teacher, (student, discriminator) = run.load_teacher(), run.load_student()
    run.compile(teacher, student)
    heldout = run.streams["heldout"].packed(1024).to(run.accelerator.device)
    # One half of the held-out text stands for data, the other is what reverse perplexity is measured on.
    data, reference = heldout[0::2], heldout[1::2]
    drawn = Evaluation(config, run.process, judge, run.accelerator, run.streams["heldout"].shape, reference=reference)
    order = run.student_order
    plain_teacher, plain_student = drawn.plain("teacher", teacher), drawn.plain("student", student, order)
    lines = [(who, steps) for who in (plain_teacher, plain_student) for steps in config.steps]
    curves = [(plain_teacher, steps, config.teacher_temperatures) for steps in config.teacher_steps]
    if order == "strided":  # In the student's order the teacher needs fewer steps too.
        strided = drawn.plain("strided teacher", teacher, order)
        lines += [(strided, steps) for steps in config.steps]
        curves.append((strided, config.frontier_steps, config.teacher_temperatures))
    guidance = float(settings["distill.prior_guidance"] or 0.0)
    if guidance:  # What was distilled is compared too.
        guided_teacher = guide_by_prior(teacher, guidance, run.process.mask_token_id)
        strong = drawn.plain("teacher + prior guidance", guided_teacher)
        lines += [(strong, steps) for steps in config.steps]
        curves += [(strong, steps, config.student_temperatures) for steps in config.teacher_steps]
    curves.append((plain_student, config.frontier_steps, config.student_temperatures))
    if discriminator is not None:
        guided = drawn.guided("student + RGAS", student, discriminator.eval(), order)
        lines += [(guided, steps) for steps in config.guided_steps]
        curves.append((guided, config.frontier_steps, config.student_temperatures))
    quiet = not run.accelerator.is_main_process
    sampler_steps = sum(steps for _, steps in lines) + sum(steps * len(each) for _, steps, each in curves)
    with run.clock.bar(total=sampler_steps, desc="evaluate", disable=quiet) as bar:
        table = [_advance(bar, steps, drawn.by_steps(who, steps)) for who, steps in lines]
        frontiers = [_advance(bar, steps * len(each), drawn.frontier(who, steps, each)) for who, steps, each in curves]
    judged = generative_perplexity(heldout, drawn.judge, precision="text")
    results = {
        "command": run.command,
        "machine": run.machine,
        "settings": settings,
        "judge": judge.name,
        "precision": drawn.precision,
        "num_samples": config.num_samples,
        "seeds": list(config.seeds),
        "data": {
            "nats_per_token": judged.nats_per_token,
            "diversity": asdict(measure_diversity(heldout)),
            "between_samples": between_samples_of_data(data, reference, config.num_samples),
        },
        "by_steps": table,
        "frontiers": frontiers,
        "samples": {
            f"{who.name}, {steps} steps": drawn.sample(who, steps, 1.0, config.seeds[0])
            .sequences[: config.shown]
            .tolist()
            for who, steps in lines
            if steps in (config.frontier_steps, max(config.steps))
        },
        "speed": _speeds(drawn, plain_teacher, plain_student, config),
        "seconds": time.perf_counter() - started,
    }
    if run.accelerator.is_main_process:
        write_results(make_folder(run.directory) / RESULTS_FILE, results)
    return results


def settings_used(run: Run) -> dict[str, Setting]:
    """This command's settings, and those that the student was really made with."""
    settings = flat_settings(run.config)
    file = run.directory / "student" / SETTINGS_FILE
    if file.exists():
        # Parts of other kinds than this command's have settings of other names.
        settings = {name: value for name, value in settings.items() if not name.startswith("distill.method")}
        settings |= {name: value for name, value in read_json_object(file).items() if name.startswith("distill.")}
    return settings


def _advance(bar: tqdm, steps: int, value: dict[str, Any]) -> dict[str, Any]:
    bar.update(steps)
    return value


def _speeds(
    drawn: Evaluation, teacher: SamplerSpec, student: SamplerSpec, config: EvaluateConfig
) -> list[dict[str, Any]]:
    """Tokens per second of teacher at most steps and student at the compared number, in one run."""
    batch = min(config.batch_size, config.num_samples)
    calls = {
        f"teacher, {max(config.steps)} steps": drawn.timed(teacher, max(config.steps), batch),
        f"teacher, {config.frontier_steps} steps": drawn.timed(teacher, config.frontier_steps, batch),
        f"student, {config.frontier_steps} steps": drawn.timed(student, config.frontier_steps, batch),
    }
    speeds = measure_speeds(calls, repeats=3, warmup=1, device=drawn.accelerator.device)
    return [
        {"method": name, "tokens_per_second": speed.tokens_per_second, "spread": speed.spread, "batch": batch}
        for name, speed in speeds.items()
    ]
