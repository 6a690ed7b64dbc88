"""What one update of each method of the comparison costs: `python -m benchmarks.methods`.

Processor seconds, evaluations of networks and memory, with the settings of the comparison's demo, on the bundled
teacher and random data. Each method runs in a process of its own, so that peaks are its own. Prints a table; writes
JSON.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_run import write_json
from benchmarks.shared_base import peak_megabytes
from discrete_distill import MaskedDiffusion
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.recipes.common.assets import asset
from discrete_distill.recipes.common.budget import FIRST_TRIED, EvaluationCounter
from discrete_distill.recipes.common.corpus import TokenStream
from discrete_distill.recipes.common.distill import Distillation
from discrete_distill.recipes.common.environment import make_accelerator
from discrete_distill.recipes.compare.settings import ComparisonConfig, demo
from discrete_distill.training import step_generator

STORED = "certainty-stored"  # The teacher's samples were recorded by an earlier run.
DISTILLED = (*(name for name in ComparisonConfig.KNOWN if name != "ar"), STORED)
TINY = DiTConfig(vocab_size=32, max_length=16, hidden_size=16, num_layers=6, num_heads=2, cond_size=8)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Updates of one method, in this process."""
    torch.set_num_threads(options.threads)
    teacher = DiT(TINY) if options.tiny else DiT.from_pretrained(asset("teacher"))
    length = TINY.max_length if options.tiny else options.length
    mask = teacher.config.vocab_size - 1
    ids = np.random.default_rng(0).integers(mask, size=100_000).astype(np.uint16)
    config: Any = replace(demo(), methods=(name.removesuffix("-stored"),)).trained()[name.removesuffix("-stored")]
    config = replace(config, loop=replace(config.loop, num_steps=2 * FIRST_TRIED))
    if name == STORED:  # Recorded in the first update, which is not counted.
        config = replace(config, trajectories=tempfile.mkdtemp(), trajectory_rows=config.batch_size)
    stream, process = TokenStream(ids, length), MaskedDiffusion(mask)
    training = Distillation(config, teacher, stream, process, make_accelerator("fp32"))
    counter = EvaluationCounter(length)
    gc.collect()
    before, seconds, evaluations = peak_megabytes(), [], []
    for index in range(FIRST_TRIED, FIRST_TRIED + options.steps + 1):  # The first one is not counted.
        counter.watch(training.networks())
        counter.take()
        started = time.process_time()
        training.step(index, step_generator(0, index))
        seconds.append(time.process_time() - started)
        evaluations.append(counter.take())
    return {
        "method": name,
        "batch_size": config.batch_size,
        "seconds": statistics.median(seconds[1:]),
        "seconds_of_updates": seconds[1:],
        "evaluations": statistics.mean(evaluations[1:]),
        "peak_MB": peak_megabytes() - before,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure all methods in turn; 0 if all were measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--methods", nargs="+", choices=DISTILLED, default=list(DISTILLED))
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5, help="updates that are counted, after one that is not")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="a tiny teacher: shows that the program runs")
    parser.add_argument("--one", choices=DISTILLED, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return 0
    given = sys.argv[1:] if arguments is None else arguments
    rows = []
    print(f"{'method':12} {'batch':>6} {'seconds':>8} {'evaluations':>12} {'memory MB':>10}")
    for name in options.methods:
        command = [sys.executable, "-m", "benchmarks.methods", *given, "--one", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        row = rows[-1]
        print(
            f"{name:12} {row['batch_size']:6} {row['seconds']:8.2f} {row['evaluations']:12.0f} {row['peak_MB']:10.0f}",
            flush=True,
        )
    about = {
        "command": " ".join(["python -m benchmarks.methods", *given]),
        "machine": f"{platform.machine()} CPU, {options.threads} threads, fp32; seconds are processor time",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "accelerate")},
        "setting": {name: str(value) for name, value in vars(options).items() if name not in ("one", "output")},
    }
    write_json(options.output / "methods.json", {**about, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
