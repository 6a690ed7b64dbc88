"""The evaluation stage: teacher and student by steps, on the frontier, and at equal cost; all figures go to one
file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ...evaluation import Judge, generative_perplexity, measure_diversity, measure_speeds
from ...models import Discriminator, DiT
from ...process import MaskedDiffusion
from ..common.evaluation import RESULTS_FILE, EvaluateConfig, Evaluation, SamplerSpec, between_samples_of_data
from ..common.results import write_results

RESULTS: dict[str, type] = {
    "judge": str, "precision": str, "num_samples": int, "seeds": list, "data": dict, "by_steps": list,
    "frontiers": list, "samples": dict, "speed": list, "seconds": float,
}  # fmt: skip


def evaluate(
    config: EvaluateConfig,
    teacher: DiT,
    student: DiT,
    discriminator: Discriminator | None,
    process: MaskedDiffusion,
    judge: Judge,
    heldout: Tensor,
    accelerator: Accelerator,
    directory: Path,
    *,
    guided_teacher: DiT | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure everything and write ``evaluation.json``. Processes share the work and all return the same figures, but
    for speeds, which are those of each.

    Args:
        heldout: text that neither teacher nor judge was trained on, int64 ``[N, L]``.
        guided_teacher: the teacher under prior guidance, where that is what was distilled; compared at the same steps.
        provenance: command, machine and settings, for the report.

    Returns:
        What was written.
    """
    started = time.perf_counter()
    # One half of the held-out text stands for data, the other is what reverse perplexity is measured on.
    data, reference = heldout[0::2], heldout[1::2]
    run = Evaluation(config, process, judge, accelerator, heldout.shape[1], reference=reference)
    plain_teacher, plain_student = run.plain("teacher", teacher), run.plain("student", student)
    lines = [(who, steps) for who in (plain_teacher, plain_student) for steps in config.steps]
    teacher_steps = (config.frontier_steps, *config.teacher_frontier_steps)
    curves = [(plain_teacher, steps, config.teacher_temperatures) for steps in teacher_steps]
    if guided_teacher is not None:
        strong = run.plain("teacher + prior guidance", guided_teacher)
        lines += [(strong, steps) for steps in config.steps]
        curves += [(strong, steps, config.student_temperatures) for steps in teacher_steps]
    curves.append((plain_student, config.frontier_steps, config.student_temperatures))
    if discriminator is not None:
        guided = run.guided("student + RGAS", student, discriminator.eval())
        lines += [(guided, steps) for steps in config.guided_steps]
        curves.append((guided, config.frontier_steps, config.student_temperatures))
    with tqdm(total=len(lines) + len(curves), desc="evaluate", disable=not accelerator.is_main_process) as bar:
        table = [_advance(bar, run.by_steps(*line)) for line in lines]
        frontiers = [_advance(bar, run.frontier(*curve)) for curve in curves]
    judged = generative_perplexity(heldout, run.judge, precision="text")
    results = {
        **(provenance or {}),
        "judge": judge.name,
        "precision": run.precision,
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
            f"{who.name}, {steps} steps": run.sample(who, steps, 1.0, config.seeds[0])
            .sequences[: config.shown]
            .tolist()
            for who, steps in lines
            if steps in (config.frontier_steps, max(config.steps))
        },
        "speed": _speeds(run, plain_teacher, plain_student, config),
        "seconds": time.perf_counter() - started,
    }
    if accelerator.is_main_process:
        write_results(directory / RESULTS_FILE, results)
    return results


def _advance(bar: tqdm, value: dict[str, Any]) -> dict[str, Any]:
    bar.update()
    return value


def _speeds(
    run: Evaluation, teacher: SamplerSpec, student: SamplerSpec, config: EvaluateConfig
) -> list[dict[str, Any]]:
    """Tokens per second of teacher at most steps and student at the compared number, in one run."""
    batch = min(config.batch_size, config.num_samples)
    calls = {
        f"teacher, {max(config.steps)} steps": run.timed(teacher, max(config.steps), batch),
        f"teacher, {config.frontier_steps} steps": run.timed(teacher, config.frontier_steps, batch),
        f"student, {config.frontier_steps} steps": run.timed(student, config.frontier_steps, batch),
    }
    speeds = measure_speeds(calls, repeats=3, warmup=1, device=run.accelerator.device)
    return [
        {"method": name, "tokens_per_second": speed.tokens_per_second, "spread": speed.spread, "batch": batch}
        for name, speed in speeds.items()
    ]
