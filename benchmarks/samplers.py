"""What sampling costs, beside the published chain with the same weights: `python -m benchmarks.samplers`.

Three parts on a CPU: the reverse step alone; samples of a transformer from beginning to end; and how the cost of a step
grows with vocabulary, batch and steps. A fourth on a GPU, where there is one. What is compared is timed in turn, in one
run. Writes CSV and JSON after every part, and plots; `--only` runs some of the parts. `--dry-run` walks through all of
it with tiny shapes; its times mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from benchmarks import sampler_plots
from benchmarks.gpu_baselines import eager_step
from benchmarks.gpu_run import write_json, write_table
from benchmarks.sampler_baselines import Sample, other_packages, published_chain
from discrete_distill import AncestralSampler, CudaGraphSampler, MaskedDiffusion
from discrete_distill.distributed.parallel import save_memory
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.training import ParallelConfig

PACKAGES = ("torch", "numpy", "bionemo-moco", "flow_matching")
VOCAB, LENGTH = 50258, 256
WHOLE_SAMPLES = ((1, 8), (1, 16), (4, 8), (4, 16))  # batch and steps, from masks to text
OURS, CHAIN, CHAIN_64, COMPILED = "discrete_distill", "chain, fp32", "chain, fp64", "chain, fp32, torch.compile"
HEADLESS = "backbone forwards alone"


class Timed(NamedTuple):
    """Seconds that the process computed, all threads together, which do not depend on what else a CPU does (on a GPU:
    by the clock); and seconds by the clock."""

    seconds: float
    clock_seconds: float

    def over(self, steps: int) -> Timed:
        """Of one step."""
        return Timed(self.seconds / steps, self.clock_seconds / steps)


@dataclass
class Results:
    """Rows of the table, and what is called after each setting: a run that is ended early keeps its rows."""

    dry: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    save: Callable[[], None] = lambda: None

    def add(self, part: str, setting: dict[str, int], timed: dict[str, list[Timed]], **more: dict[str, float]) -> None:
        """A row for each method of a setting; ratios are medians of ratios within a round."""
        for name, rounds in timed.items():
            times = [each.seconds for each in rounds]
            ratios = [theirs.seconds / ours.seconds for theirs, ours in zip(rounds, timed[OURS], strict=True)]
            row = {
                "part": part,
                **setting,
                "method": name,
                "rounds": len(times),
                "seconds": statistics.median(times),
                "seconds_least": min(times),
                "seconds_most": max(times),
                "clock_seconds": statistics.median(each.clock_seconds for each in rounds),
                "times_ours": statistics.median(ratios),
                **{key: values[name] for key, values in more.items() if name in values},
            }
            self.rows.append(row)
            print({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}, flush=True)
        self.save()


def time_in_turn(samples: dict[str, Sample], rounds: int, *, warm: bool = True) -> dict[str, list[Timed]]:
    """How long each takes, in rounds, after one that does not count."""
    timed: dict[str, list[Timed]] = {name: [] for name in samples}
    for number in range(rounds + warm):
        for name, sample in samples.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            sample()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warm:
                clock, computed = time.perf_counter() - started, time.process_time() - cpu_started
                timed[name].append(Timed(clock if torch.cuda.is_available() else computed, clock))
    return timed


def peak_megabytes(sample: Sample) -> float:
    """Greatest sum of what a call has allocated and not yet freed, on the CPU, from the profiler's own records."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        sample()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def our_sampler(denoiser: Any, shape: tuple[int, int], mask: int, num_steps: int, **options: Any) -> Sample:
    """Ancestral sampling by this library, another seed in every call."""
    sampler, generator = AncestralSampler(MaskedDiffusion(mask), num_steps=num_steps), Generator().manual_seed(0)
    return lambda: sampler(denoiser, shape, generator=generator, **options)


def fixed(logits: Tensor) -> Callable[..., Tensor]:
    """A denoiser that costs nothing."""
    return lambda x, t: logits[: len(x)]


def reverse_step(results: Results) -> None:
    """Eight reverse steps from logits that are there already: what sampling costs beside the network."""
    shape, vocab, steps = (1, 16 if results.dry else LENGTH), 500 if results.dry else VOCAB, 8
    logits = 3.0 * torch.randn(*shape, vocab, generator=Generator().manual_seed(0))
    mask = vocab - 1
    samples = {
        OURS: our_sampler(fixed(logits), shape, mask, steps),
        CHAIN: published_chain(fixed(logits), shape, mask, steps),
        CHAIN_64: published_chain(fixed(logits), shape, mask, steps, dtype=torch.float64),
        **other_packages(logits, mask, steps),
    }
    try:
        if results.dry:
            raise RuntimeError("a dry run compiles nothing")
        compiled = torch.compile(eager_step, dynamic=True)
        samples[COMPILED] = published_chain(fixed(logits), shape, mask, steps, step=compiled)
        samples[COMPILED]()
    except Exception as error:  # a machine without a compiler still has the other rows
        print(f"torch.compile does not run here: {type(error).__name__}", flush=True)
        samples.pop(COMPILED, None)
    peaks = {name: peak_megabytes(sample) for name, sample in samples.items()}
    timed = time_in_turn(samples, 1 if results.dry else 3, warm=False)
    setting = {"vocab": vocab, "batch": 1, "length": shape[1], "steps": steps}
    results.add("reverse step alone", setting, timed, peak_MB=peaks)


def random_transformer(config: DiTConfig) -> DiT:
    """Random weights, none of them zero: a head of zeros would make softmax unusually cheap."""
    torch.manual_seed(0)
    network = DiT(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return network


def end_to_end(results: Results) -> None:
    """A transformer of 12 layers, 768 wide, from masks to text; and its backbone as often, without head and draw."""
    tiny = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 100}
    config = DiTConfig(**(tiny if results.dry else {"vocab_size": VOCAB}), max_length=LENGTH)
    network, mask = random_transformer(config), config.vocab_size - 1
    length = 16 if results.dry else LENGTH
    our_sampler(network, (1, length), mask, 1)()  # the first forward pass of a process is slow
    for batch, steps in WHOLE_SAMPLES:
        shape = (batch, length)

        def backbone(shape: tuple[int, int] = shape, steps: int = steps) -> None:
            masks, t = torch.full(shape, mask), torch.ones(shape[0])
            with torch.no_grad():
                for _ in range(steps):
                    network.features(masks, t)

        samples = {
            HEADLESS: backbone,
            OURS: our_sampler(network, shape, mask, steps),
            CHAIN: published_chain(network, shape, mask, steps),
        }
        rounds = 1 if results.dry else 3 if batch == 1 else 2
        timed = time_in_turn(samples, rounds, warm=False)
        setting = {"vocab": config.vocab_size, "batch": batch, "length": length, "steps": steps}
        results.add("end to end", setting, timed)


def growth(results: Results) -> None:
    """Seconds of a reverse step without the network, as one of vocabulary, batch and steps grows."""
    base = {"vocab": 8192, "batch": 1, "steps": 8}
    vocabularies, batches, steps = (1024, 4096, 16384, 65536, 262144), (1, 2, 4, 8, 16), (2, 8, 32, 128)
    if results.dry:
        vocabularies, batches, steps = (64, 128), (1, 2), (2, 4)
    for name, values in (("vocab", vocabularies), ("batch", batches), ("steps", steps)):
        for value in values:
            setting = {**base, **({"vocab": 64} if results.dry else {}), name: value}
            shape, mask = (setting["batch"], LENGTH), setting["vocab"] - 1
            row = torch.randn(setting["vocab"], generator=Generator().manual_seed(0))
            logits = row.expand(*shape, -1).contiguous()
            # The chain's step costs the same whatever their number: two of them are timed.
            taken = {OURS: setting["steps"], CHAIN: 2}
            samples = {
                OURS: our_sampler(fixed(logits), shape, mask, taken[OURS]),
                CHAIN: published_chain(fixed(logits), shape, mask, taken[CHAIN]),
            }
            timed = time_in_turn(samples, 1 if results.dry else 2)
            per_step = {method: [each.over(taken[method]) for each in rounds] for method, rounds in timed.items()}
            results.add(f"step against {name}", {**setting, "length": LENGTH}, per_step)


def on_a_gpu(results: Results) -> None:
    """Batches of 1024 tokens from the same transformer in bf16: eager, with compiled blocks, as one graph, and the
    published chain."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not results.dry:
        print("no CUDA device here: its part is left out", flush=True)
        return
    tiny = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 100}
    length = 16 if results.dry else 1024
    config = DiTConfig(**(tiny if results.dry else {"vocab_size": VOCAB}), max_length=length)
    network, mask = random_transformer(config).to(device, torch.bfloat16), config.vocab_size - 1
    compiled = copy.deepcopy(network)
    save_memory(compiled, ParallelConfig(compile_backend="eager" if results.dry else "inductor"))
    for batch in (1, 2) if results.dry else (1, 16, 64, 256):
        for steps in (8, 16):
            shape = (batch, length)
            graph = CudaGraphSampler(AncestralSampler(MaskedDiffusion(mask), num_steps=steps))
            samples: dict[str, Sample] = {
                OURS: our_sampler(network, shape, mask, steps, device=device),
                "discrete_distill, compiled blocks": our_sampler(compiled, shape, mask, steps, device=device),
                "discrete_distill, one graph": partial(graph, network, shape, device=device),
                CHAIN: published_chain(network, shape, mask, steps, device=device),
            }
            for name in list(samples):
                try:
                    samples[name]()
                except Exception as error:  # what does not run here leaves the others their rows
                    print(f"{name}, batch {batch}: {type(error).__name__}: {str(error)[:80]}", flush=True)
                    del samples[name]
                    torch.cuda.empty_cache()
            if OURS not in samples:
                continue
            timed = time_in_turn(samples, 1 if results.dry else 3)
            rates = {
                name: batch * length / statistics.median(each.seconds for each in rounds)
                for name, rounds in timed.items()
            }
            setting = {"vocab": config.vocab_size, "batch": batch, "length": length, "steps": steps}
            results.add("GPU, end to end", setting, timed, tokens_per_second=rates)


def about(command: str) -> dict[str, Any]:
    """Machine, versions and how it was run."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "precision": "fp32 network on the CPU, bf16 on a GPU; fp32 draw",
        "seeds": "0 for weights and logits; another draw in every round",
        "versions": versions,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def judge(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals, and what was measured."""

    def row(part: str, method: str, batch: int, steps: int) -> dict[str, Any]:
        wanted = (part, method, batch, steps)
        return next(r for r in rows if (r["part"], r["method"], r["batch"], r["steps"]) == wanted)

    timed = {(each["part"], each["batch"], each["steps"]) for each in rows}
    goals: list[tuple[str, str, float, bool]] = []
    if ("reverse step alone", 1, 8) in timed:
        alone, chain = (row("reverse step alone", method, 1, 8) for method in (OURS, CHAIN))
        memory = alone["peak_MB"] / chain["peak_MB"]
        faster = chain["times_ours"]
        goals.append(("reverse step alone, times ours (chain, fp32)", ">= 20", faster, faster >= 20.0))
        goals.append(("reverse step alone, peak memory over the chain's", "< 0.1", memory, memory < 0.1))
    for batch, steps in WHOLE_SAMPLES:
        if ("end to end", batch, steps) not in timed:
            continue
        ratio = row("end to end", CHAIN, batch, steps)["times_ours"]
        over = 1.0 / row("end to end", HEADLESS, batch, steps)["times_ours"]
        name = f"end to end, batch {batch}, {steps} steps"
        goals.append((f"{name}, times ours (chain, fp32)", ">= 1.6", ratio, ratio >= 1.6))
        goals.append((f"{name}, over the backbone alone", "<= 1.1", over, over <= 1.1))
    return [dict(zip(("goal", "wanted", "measured", "met"), goal, strict=True)) for goal in goals]


PARTS: dict[str, Callable[[Results], None]] = {
    "step": reverse_step,
    "whole": end_to_end,
    "growth": growth,
    "gpu": on_a_gpu,
}


def main(argv: list[str] | None = None) -> None:
    """Time, print, write after every part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"), help="folder of CSV, JSON and plots")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="parts to run")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes: shows that the program runs")
    options = parser.parse_args(argv)
    results = Results(options.dry_run)
    started = time.perf_counter()
    command = ["python -m benchmarks.samplers"]
    if options.only != list(PARTS):
        command.append("--only " + " ".join(options.only))
    machine = about(" ".join([*command, *["--dry-run"] * options.dry_run]))

    def document() -> dict[str, Any]:
        minutes = (time.perf_counter() - started) / 60
        return {**machine, "minutes": minutes, "goals": judge(results.rows), "rows": results.rows}

    def save() -> None:
        write_json(options.output / "samplers.json", document())
        write_table(options.output / "samplers.csv", results.rows)

    results.save = save
    for name in options.only:
        PARTS[name](results)
    for goal in judge(results.rows):
        print(goal, flush=True)
    if set(options.only) >= {"step", "whole", "growth"}:
        sampler_plots.write(options.output, results.rows, document())


if __name__ == "__main__":
    sys.exit(main())
