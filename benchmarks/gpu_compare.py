"""Methods compared on the bundled text with three trainings each, on one GPU: `python -m benchmarks.gpu_compare`.

The bundled teacher is distilled by every method under one budget of network evaluations, and all are compared at equal
entropy, as `recipes.compare` does on two cores in hours. Networks are so small that the GPU waits for the host, so the
methods train side by side, each in a process of its own; seconds are therefore not compared. The report, its plots,
`comparison.json` and the samples go to `--out`; `recipes.compare judge` prices the samples by further judges on any
machine (`--output docs/results --name gpu-compare`). `--tiny` walks through all of it on any device, and its figures
mean nothing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from discrete_distill.distillation.methods import with_changes
from discrete_distill.recipes.common.corpus import DataConfig
from discrete_distill.recipes.common.distill_config import DistillConfig
from discrete_distill.recipes.common.evaluation import EvaluateConfig
from discrete_distill.recipes.common.results import read_results, write_results
from discrete_distill.recipes.compare.comparison import COSTS_FILE, RESULTS_FILE, Comparison
from discrete_distill.recipes.compare.further_judges import SAMPLES_FILE
from discrete_distill.recipes.compare.settings import ComparisonConfig
from discrete_distill.recipes.compare.settings import demo as comparison_demo
from discrete_distill.recipes.compare.training import train_method
from discrete_distill.training import ParallelConfig

METHODS = ("sdtt", "didi", "didi-paper", "idlm", "feature-mmd", "alpha", "certainty", "on-policy")
SHORT_RUN = 50_000.0  # evaluations up to which averages of the weights forget fast, as in the demo.


def make_config(options: argparse.Namespace) -> ComparisonConfig:
    """The demo's settings, with a budget of evaluations and several trainings."""
    config = comparison_demo()
    config.output, config.name = options.out / "work", "gpu-compare"
    config.methods, config.extra_judges = tuple(options.methods), tuple(options.extra_judges)
    config.budget, config.amount = "network_evaluations", options.amount
    config.train_seeds = tuple(options.train_seeds)
    config.precision = "fp32"
    config.discriminator = replace(config.discriminator, updates=0)
    for method in config.trained().values():
        if not isinstance(method, DistillConfig):
            continue
        method.parallel = ParallelConfig()
        if config.amount > SHORT_RUN:
            method.student = replace(method.student, ema_decay=0.98)
            method.ratio = replace(method.ratio, schedule="cosine")
    config.evaluate = EvaluateConfig(num_samples=64, steps=(4, 8, 16), guided_steps=(), batch_size=64)
    if options.tiny:
        config.data = DataConfig(length=32)
        for method in config.trained().values():
            method.batch_size = 4
        for method in (config.distill, config.idlm):
            method.method = with_changes(method.method, advantages={"group_size": 2})
        config.evaluate = EvaluateConfig(
            num_samples=2, steps=(4, 8), teacher_frontier_steps=(), guided_steps=(), batch_size=2
        )
        config.temperature_limits, config.bound_sequences = (0.88, 1.0), 2
    return config


def train_one(comparison: Comparison, name: str) -> None:
    """Train one method with every seed, and write what it cost into its folder."""
    teacher = comparison.run.load_teacher()
    config = comparison.config
    method = comparison.methods[name]
    costs = [train_method(comparison.run, config, name, method, teacher, seed) for seed in config.train_seeds]
    write_results(comparison.run.directory / name / COSTS_FILE, {"costs": [asdict(cost) for cost in costs]})


def train_side_by_side(comparison: Comparison, command: list[str], seconds: float) -> None:
    """Train all methods in processes of their own; those that fail, or are not ready in time, are left out."""
    folder = comparison.run.directory
    folder.mkdir(parents=True, exist_ok=True)
    _ = comparison.run.streams  # tokenised once, before the others look for it
    deadline = time.monotonic() + seconds
    running = {}
    for name in comparison.methods:
        with (folder / f"{name}.log").open("w") as log:
            running[name] = subprocess.Popen([*command, "--train", name], stdout=log, stderr=subprocess.STDOUT)
    costs = {}
    for name, process in running.items():
        try:
            code = process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            code = -1
        if code == 0:
            costs[name] = read_results(folder / name / COSTS_FILE, {"costs": list})["costs"]
        else:
            print(f"{name} {'was not ready in time' if code == -1 else 'failed'}:", file=sys.stderr)
            print((folder / f"{name}.log").read_text()[-1500:], file=sys.stderr)
            del comparison.methods[name]
    write_results(folder / COSTS_FILE, costs)


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 if every method was measured, 1 if one is missing, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/gpu-compare"))
    parser.add_argument("--amount", type=float, default=200_000.0, help="network evaluations for each training")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--train-seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--extra-judges", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=600.0, help="of training, after which none is waited for")
    parser.add_argument("--tiny", action="store_true", help="few samples, on any device")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        print("no CUDA device; --tiny walks through the program on a CPU", file=sys.stderr)
        return 2
    given = sys.argv[1:] if arguments is None else arguments
    comparison = Comparison(make_config(options), " ".join(["python -m benchmarks.gpu_compare", *given]))
    if options.train:
        train_one(comparison, options.train)
        return 0
    command = [sys.executable, "-m", "benchmarks.gpu_compare", *given]
    train_side_by_side(comparison, command, options.seconds)
    comparison.evaluate()
    comparison.report()
    folder = comparison.run.directory
    for name in (RESULTS_FILE, SAMPLES_FILE, "report.md", "frontier.png", "steps.png"):
        shutil.copy(folder / name, options.out / name)
    shutil.rmtree(options.out / "work")
    return 0 if len(comparison.methods) == len(options.methods) else 1


if __name__ == "__main__":
    sys.exit(main())
