"""The whole of it on one GPU in under nine minutes: `python -m benchmarks.gpu_distill`.

A teacher of 30M parameters is trained on the bundled text, distilled by several methods under one budget of seconds,
and all are compared at equal entropy; the report, its plots and `gpu_distill.json` with device, date and seconds go to
`--out`, the JSON after every stage. Late in the time that `--seconds` allows, no further method is trained and no
further line measured. `--tiny` walks through all of it on a CPU with small networks: it proves that the program runs,
and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_run import write_json
from discrete_distill.distillation.methods import (
    DiDiInstructConfig,
    Regularization,
    SDTTConfig,
    with_changes,
)
from discrete_distill.models import DiTConfig
from discrete_distill.recipes.common.corpus import DataConfig
from discrete_distill.recipes.common.environment import describe_machine
from discrete_distill.recipes.common.evaluation import EvaluateConfig
from discrete_distill.recipes.common.fingerprint import write_fingerprint
from discrete_distill.recipes.common.network_shape import network_shape
from discrete_distill.recipes.common.teacher import TeacherConfig, train_teacher
from discrete_distill.recipes.compare.comparison import RESULTS_FILE, Comparison
from discrete_distill.recipes.compare.readings import collapses
from discrete_distill.recipes.compare.settings import ComparisonConfig
from discrete_distill.recipes.compare.settings import demo as comparison_demo
from discrete_distill.training import LoopConfig, OptimizerConfig, ParallelConfig
from discrete_distill.training.metrics import read_metrics

LIMIT_SECONDS = 540.0
TRAINING_SHARE = 0.7  # of the limit: later than that, the methods that are there are measured.
TRIED_UPDATES = 60


def full_config(output: Path) -> ComparisonConfig:
    """Sizes and budgets for a GPU."""
    config = comparison_demo()
    config.output, config.name, config.amount, config.autoregressive_share = output, "gpu-distill", 24.0, 1.0
    config.methods = ("sdtt", "didi", "feature-mmd", "alpha", "ar")
    config.data = DataConfig(length=256)
    config.teacher = TeacherConfig(
        path="",
        model=DiTConfig(vocab_size=2048, max_length=256, hidden_size=512, num_layers=8, num_heads=8, dropout=0.1),
        loop=LoopConfig(num_steps=TRIED_UPDATES, checkpoint_every=100_000, keep_checkpoints=1),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            betas=(0.9, 0.98),
            weight_decay=0.1,
            warmup_steps=100,
            schedule="cosine",
            ema_decay=0.998,
        ),
        batch_size=64,
        evaluate_every=100_000,
        half_precision=False,
    )
    for distill, method in (
        (
            config.distill,
            DiDiInstructConfig.recommended(advantages={"group_size": 32}, regularization=Regularization()),
        ),
        (config.feature_mmd, config.feature_mmd.method),
        (config.alpha, config.alpha.method),
    ):
        distill.method, distill.batch_size, distill.parallel = method, 64, ParallelConfig()
        distill.student = replace(distill.student, learning_rate=1e-4, ema_decay=0.98)
        distill.ratio = replace(distill.ratio, learning_rate=3e-4)
    config.sdtt.method = SDTTConfig(teacher_steps=256, rounds=5, step_conditioning=True)
    config.sdtt.batch_size = 64
    config.sdtt.student = replace(config.sdtt.student, learning_rate=1e-4, ema_decay=0.98)
    config.autoregressive.batch_size = 64
    config.evaluate = EvaluateConfig(
        num_samples=64,
        seeds=(0, 1),
        steps=(4, 8, 16),
        teacher_frontier_steps=(64,),
        guided_steps=(8, 16),
        batch_size=64,
    )
    return config


def tiny_config(output: Path) -> ComparisonConfig:
    """The same, so small that a CPU walks through it in seconds."""
    config = full_config(output)
    config.budget, config.amount = "network_evaluations", 150.0
    config.data = DataConfig(length=16)
    config.teacher.model = DiTConfig(
        vocab_size=2048, max_length=16, hidden_size=16, num_layers=2, num_heads=2, cond_size=8, dropout=0.0
    )
    config.teacher.batch_size = 4
    for distill in config.distillations().values():
        distill.batch_size = 4
    distill = config.distill
    distill.method = with_changes(
        distill.method,
        advantages={"group_size": 2},
        log_ratio={"warmup": 0, "updates": 1},
        credit={"corruption": {"num_draws": 1}},
    )
    config.autoregressive.batch_size = 4
    config.sdtt.method = SDTTConfig(teacher_steps=8, rounds=2)
    config.evaluate = replace(config.evaluate, num_samples=2, steps=(4, 8), teacher_frontier_steps=(), batch_size=2)
    config.evaluate.guided_steps = (8,)
    config.temperature_limits, config.bound_sequences = (0.88, 1.0), 2
    return config


def train_teacher_for(comparison: Comparison, seconds: float) -> int:
    """Train as many updates as fit into ``seconds``, by what a few took after the first, which start the device;
    returns their number."""
    config = comparison.config.teacher
    config.loop = replace(config.loop, log_every=max(1, TRIED_UPDATES // 3))
    settings = comparison.run.streams, comparison.run.process, comparison.run.accelerator
    updates = TRIED_UPDATES
    for number in (TRIED_UPDATES, 0):
        config.loop = replace(config.loop, num_steps=number or updates)
        folder = comparison.run.directory / ("tried" if number else "teacher")
        train_teacher(copy.deepcopy(config), *settings, folder)
        write_fingerprint(folder, comparison.run.tokenizer)
        first, second = read_metrics(folder)[:2]
        each = (second["seconds"] - first["seconds"]) / (second["step"] - first["step"])
        updates = max(TRIED_UPDATES, int(seconds / max(each, 1e-3)))
    return config.loop.num_steps


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 if all was done within the limit, 1 if it took longer or a stage failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/gpu-distill"))
    parser.add_argument("--teacher-seconds", type=float, default=75.0)
    parser.add_argument("--seconds", type=float, default=LIMIT_SECONDS, help="limit of the whole run")
    parser.add_argument("--tiny", action="store_true", help="small networks on any device")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        print("no CUDA device; --tiny walks through the program on a CPU", file=sys.stderr)
        return 2
    started = time.perf_counter()
    work = options.out / "work"
    config = tiny_config(work) if options.tiny else full_config(work)
    given = sys.argv[1:] if arguments is None else arguments
    comparison = Comparison(config, " ".join(["python -m benchmarks.gpu_distill", *given]))
    summary: dict[str, Any] = {
        "device": describe_machine(comparison.run.accelerator),
        "date": datetime.date.today().isoformat(),
        "tiny": options.tiny,
        "teacher_parameters": network_shape(config.teacher.model).parameters,
        "limit_seconds": options.seconds,
        "stages": {},
    }

    def late(share: float) -> bool:
        return time.perf_counter() - started > share * options.seconds

    def train_the_teacher() -> None:
        summary["teacher_updates"] = train_teacher_for(comparison, 0.0 if options.tiny else options.teacher_seconds)
        config.teacher.path = str(comparison.run.directory / "teacher")

    def evaluate() -> None:
        comparison.evaluate(late=lambda: late(0.9))
        summary["results"] = json.loads((comparison.run.directory / RESULTS_FILE).read_text())
        collapsed = collapses(summary["results"])
        summary["collapsed"] = [f"{method}, {steps} steps: {why}" for (method, steps), why in collapsed.items()]
        print("\n".join(summary["collapsed"] or ["no method collapsed"]))

    def report() -> None:
        comparison.report()
        for name in ("report.md", "frontier.png", "steps.png"):
            shutil.copy(comparison.run.directory / name, options.out / name)

    stages: dict[str, Callable[[], None]] = {
        "teacher": train_the_teacher,
        "train": lambda: comparison.train(late=lambda: late(TRAINING_SHARE)),
        "evaluate": evaluate,
        "report": report,
    }
    for name, stage in stages.items():
        begun = time.perf_counter()
        try:
            stage()
            failure = None
        except Exception as error:  # what the stages before it found is on disk already
            failure = f"{type(error).__name__}: {error}"
            print(f"{name} failed: {failure}", file=sys.stderr)
        summary["stages"][name] = {"seconds": time.perf_counter() - begun, "failure": failure}
        summary["seconds"] = time.perf_counter() - started
        write_json(options.out / "gpu_distill.json", summary)
        if failure is not None:
            return 1
    shutil.rmtree(work)
    within = summary["seconds"] < options.seconds
    print(f"{summary['seconds']:.0f} s, {'within' if within else 'OVER'} the limit of {options.seconds:.0f} s")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
