"""Methods compared on the bundled text with three trainings each, on one GPU: `python -m benchmarks.gpu_compare`.

The bundled teacher is distilled by every method under one budget of network evaluations, and all are compared at equal
entropy, as `recipes.compare` does on two cores in hours. Networks are so small that the GPU waits for the host, so each
method trains and is measured in a process of its own, side by side; seconds are therefore not compared. Without CUDA's
Multi-Process Service (`nvidia-cuda-mps-control -d`, started before) processes take turns on the GPU, which costs most
of the gain. The report, its plots, `comparison.json` and the samples go to `--out`; `recipes.compare judge` prices the
samples by further judges on any machine (`--output docs/results --name gpu-compare`). What was trained stays in
`--work`, if it is given, and the same command goes on from there. `--tiny` walks through all of it on any device, and
its figures mean nothing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from discrete_distill.distillation.methods import with_changes
from discrete_distill.recipes.common.corpus import DataConfig
from discrete_distill.recipes.common.distill_config import DistillConfig
from discrete_distill.recipes.common.evaluation import EvaluateConfig
from discrete_distill.recipes.common.results import write_results
from discrete_distill.recipes.compare.comparison import RESULTS_FILE, Comparison
from discrete_distill.recipes.compare.further_judges import SAMPLES_FILE, Samples, read_samples, write_samples
from discrete_distill.recipes.compare.settings import ComparisonConfig
from discrete_distill.recipes.compare.settings import demo as comparison_demo
from discrete_distill.training import ParallelConfig

METHODS = ("sdtt", "didi", "didi-paper", "idlm", "feature-mmd", "alpha", "certainty", "on-policy")
TARGET = "didi-target"
SHORT_RUN = 50_000.0  # evaluations up to which averages of the weights forget fast, as in the demo.


def make_config(options: argparse.Namespace) -> ComparisonConfig:
    """The demo's settings, with a budget of evaluations and several trainings."""
    config = comparison_demo()
    config.output, config.name = options.work, "gpu-compare"
    config.methods, config.extra_judges = tuple(options.methods), tuple(options.extra_judges)
    config.budget, config.amount = "network_evaluations", options.amount
    config.train_seeds = tuple(options.train_seeds)
    config.precision = "fp32"
    config.discriminator = replace(config.discriminator, updates=0)
    config.didi_target.target = options.target
    for method in config.trained().values():
        if not isinstance(method, DistillConfig):
            continue
        method.parallel = ParallelConfig()
        if config.amount > SHORT_RUN:
            method.student = replace(method.student, ema_decay=0.98)
            method.ratio = replace(method.ratio, schedule="cosine")
    config.evaluate = EvaluateConfig(num_samples=64, steps=(4, 8, 16), guided_steps=(8,), batch_size=64)
    config.temperature_limits = (0.5, 3.0)
    if options.tiny:
        config.data = DataConfig(length=32)
        for method in config.trained().values():
            method.batch_size = 4
        for method in (config.distill, config.idlm, config.didi_target):
            method.method = with_changes(method.method, advantages={"group_size": 2})
        config.evaluate = EvaluateConfig(
            num_samples=2, steps=(4, 8), teacher_frontier_steps=(16,), guided_steps=(), batch_size=2
        )
        config.temperature_limits, config.bound_sequences = (0.88, 1.0), 2
    return config


def comparison_of(name: str, options: argparse.Namespace, command: str) -> Comparison:
    """The comparison of one method with the teacher, whose many steps are measured beside the first method alone."""
    config = make_config(options)
    config.name, config.methods = f"gpu-compare/{name}", (name,)
    if name != options.methods[0]:
        config.evaluate = replace(config.evaluate, teacher_frontier_steps=())
    return Comparison(config, command)


def side_by_side(options: argparse.Namespace, command: list[str]) -> list[str]:
    """Train and measure each method in a process of its own; returns those that were ready in time."""
    (options.work / "gpu-compare").mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.seconds
    running = {}
    for name in options.methods:
        with (options.work / "gpu-compare" / f"{name}.log").open("w") as log:
            running[name] = subprocess.Popen([*command, "--one", name], stdout=log, stderr=subprocess.STDOUT)
    ready = []
    for name, process in running.items():
        try:
            code = process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            code = None
        if code == 0:
            ready.append(name)
        else:
            print(f"{name} {'was not ready in time' if code is None else 'failed'}:", file=sys.stderr)
            print((options.work / "gpu-compare" / f"{name}.log").read_text()[-1500:], file=sys.stderr)
    return ready


def merged(each: list[tuple[dict[str, Any], list[Samples]]]) -> tuple[dict[str, Any], list[Samples]]:
    """One comparison of several that share a teacher, whose lines are taken from the first. Speeds are left out: the
    methods shared a GPU."""
    whole, samples = each[0]
    whole["speed"] = []
    for results, others in each[1:]:
        own = [index for index, line in enumerate(results["lines"]) if line["method"] != "teacher"]
        whole["lines"] += [results["lines"][index] for index in own]
        samples = [*samples, *(others[index] for index in own)]
        whole["training"] |= results["training"]
        whole["parameters"] |= results["parameters"]
        whole["likelihood"] += [line for line in results["likelihood"] if line["method"] != "teacher"]
        whole["seconds"] = max(whole["seconds"], results["seconds"])
    return whole, samples


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 if every method was measured, 1 if one is missing, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/gpu-compare"))
    parser.add_argument("--work", type=Path, help="where trainings are kept; a temporary folder by default")
    parser.add_argument("--amount", type=float, default=200_000.0, help="network evaluations for each training")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--target", default="", help=f"folder of an autoregressive network, for {TARGET}")
    parser.add_argument("--train-seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--extra-judges", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=900.0, help="after which no method is waited for")
    parser.add_argument("--tiny", action="store_true", help="few samples, on any device")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        print("no CUDA device; --tiny walks through the program on a CPU", file=sys.stderr)
        return 2
    given = sys.argv[1:] if arguments is None else arguments
    called = " ".join(["python -m benchmarks.gpu_compare", *given])
    if options.one:
        comparison = comparison_of(options.one, options, called)
        comparison.check_teacher()
        comparison.train()
        comparison.evaluate()
        return 0
    with tempfile.TemporaryDirectory() as folder:
        options.work = options.work or Path(folder)
        return compare(options, given, called)


def compare(options: argparse.Namespace, given: list[str], called: str) -> int:
    """Train, measure and report; see `main`."""
    _ = Comparison(make_config(options), called).run.streams  # Tokenised once, before the others look for it.
    command = [sys.executable, "-m", "benchmarks.gpu_compare", *given, "--work", str(options.work)]
    names, ready = list(options.methods), side_by_side(options, command)
    if not ready:
        return 1
    each = []
    for name in ready:
        comparison = comparison_of(name, options, called)
        results = comparison.results()
        each.append((results, read_samples(comparison.run.directory, results)))
    whole, samples = merged(each)
    options.methods = ready
    comparison = Comparison(make_config(options), called)
    folder = comparison.run.directory
    whole["samples"] = write_samples(folder, samples)
    write_results(folder / RESULTS_FILE, whole)
    comparison.report()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in (RESULTS_FILE, SAMPLES_FILE, "report.md", "frontier.png", "steps.png"):
        shutil.copy(folder / name, options.out / name)
    return 0 if ready == names else 1


if __name__ == "__main__":
    sys.exit(main())
