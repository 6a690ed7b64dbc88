"""Distillation in nats: `python -m benchmarks.exact`.

A perfect teacher, a small student, and methods compared at equal numbers of steps by the exact distribution of what
they sample; then where the distance is lost, and a language too large to enumerate. Prints tables; writes CSV, JSON,
plots.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator

from benchmarks import attribution
from benchmarks.exact_plots import plot_attribution, plot_distances
from benchmarks.laboratory import (
    Laboratory,
    LookUpDenoiser,
    PerfectDenoiser,
    Training,
    distil,
    score,
    score_distribution,
)
from discrete_distill import exact
from discrete_distill.distillation.methods import DiDiInstructConfig, Regularization
from discrete_distill.evaluation import Estimate
from discrete_distill.recipes.common.diversity_columns import collapse_of
from discrete_distill.samplers import AncestralSampler

STEPS = (1, 2, 4, 8)
PATHS = (2, 4, 8)
OPTIMUM_SEEDS = {1: 0, 2: 1, 4: 0}


class Method(NamedTuple):
    """What is compared, and how it is trained."""

    config: DiDiInstructConfig
    training: Training


METHODS = {
    "paper": Method(DiDiInstructConfig.paper(), Training(rate=3e-4, ratio_rate=1e-3)),
    "not conditioned": Method(
        DiDiInstructConfig.recommended(
            paths={"num_steps": PATHS}, log_ratio={"step_conditioning": False}, regularization=Regularization()
        ),
        Training(),
    ),
    "defaults": Method(
        DiDiInstructConfig.recommended(paths={"num_steps": PATHS}, regularization=Regularization()), Training()
    ),
    "defaults, longer": Method(
        DiDiInstructConfig.recommended(paths={"num_steps": PATHS}, regularization=Regularization()),
        Training(updates=600, batch=2048),
    ),
}
USUAL_METHODS = ("paper", "defaults")
PARTS = ("distances", "sources", "large")


class Row(NamedTuple):
    """One figure of the CSV."""

    part: str
    method: str
    seed: int
    steps: int
    reverse_kl: float
    forward_kl: float
    total_variation: float
    entropy: float
    agreement: float
    collision: float
    seconds: float


def small_laboratory() -> Laboratory:
    """Five words, length 6."""
    return Laboratory(*exact.small_chain())


def distances(name: str, seed: int) -> list[Row]:
    """A method's exact distances from the distribution."""
    laboratory = small_laboratory()
    teacher = LookUpDenoiser(laboratory)
    started = time.perf_counter()
    if name == "teacher":
        scores = score(laboratory, teacher, STEPS)
    else:
        method = METHODS[name]
        student = distil(laboratory, teacher, method.config, method.training, seed=seed)
        scores = score(laboratory, student, STEPS)
    seconds = time.perf_counter() - started
    return [Row("distances", name, seed, *each, seconds) for each in scores]


def optimum(steps: int) -> list[Row]:
    """The optimal student's distances; at four steps, where they are nearly zero, after half the usual iterations."""
    laboratory = small_laboratory()
    started = time.perf_counter()
    generator = Generator().manual_seed(OPTIMUM_SEEDS[steps])
    iterations = 400 if steps < 4 else 200
    best = exact.optimal_student(laboratory.chain, steps, laboratory.length, iterations=iterations, generator=generator)
    result = score_distribution(best.distribution, laboratory.chain.distribution(laboratory.length), steps)
    return [Row("distances", "optimal", 0, *result, time.perf_counter() - started)]


def sources(name: str, seed: int, steps: int) -> list[Row]:
    """How far one source of knowledge takes a student."""
    started = time.perf_counter()
    result = attribution.distil_from(name, steps, Training(updates=200, batch=256), seed)
    return [Row("sources", name, seed, *result, time.perf_counter() - started)]


def source_ends() -> list[Row]:
    """Teacher and optimum of the attribution's distribution."""
    laboratory = attribution.small_laboratory()
    rows = [
        Row("sources", "teacher", 0, *each, 0.0)
        for each in score(laboratory, LookUpDenoiser(laboratory), attribution.STEPS)
    ]
    for steps in attribution.STEPS:
        best = exact.optimal_student(
            laboratory.chain, steps, laboratory.length, iterations=200, generator=Generator().manual_seed(1)
        )
        result = score_distribution(best.distribution, laboratory.chain.distribution(laboratory.length), steps)
        rows.append(Row("sources", "optimal", 0, *result, 0.0))
    return rows


class LargeRow(NamedTuple):
    """On the distribution that is not enumerated: nats a sequence under the chain, and trigram divergence, at some
    steps."""

    method: str
    seed: int
    steps: int
    chain_nats: float
    trigram_kl: float


def large(name: str, seed: int) -> list[LargeRow]:
    """A method on eight words, length 16."""
    laboratory = Laboratory(*exact.large_chain(), hidden_size=64)
    teacher = PerfectDenoiser(laboratory)
    student = teacher
    if name != "teacher":
        method = METHODS[name]
        training = Training(updates=150, batch=192, rate=method.training.rate, ratio_rate=method.training.ratio_rate)
        student = distil(laboratory, teacher, method.config, training, seed=seed)
    return [LargeRow(name, seed, steps, *_sampled_scores(laboratory, student, steps)) for steps in STEPS[1:]]


def _sampled_scores(laboratory: Laboratory, denoiser: torch.nn.Module, steps: int) -> tuple[float, float]:
    sampler = AncestralSampler(laboratory.process, num_steps=steps)
    x = sampler(denoiser, (8192, laboratory.length), generator=Generator().manual_seed(0)).sequences
    words = laboratory.chain.vocab_size
    kls = []
    for start in range(laboratory.length - 2):
        place = (x[:, start : start + 3] * torch.tensor([words**2, words, 1])).sum(1)
        loss_mask = torch.bincount(place, minlength=words**3).double() + 1e-3
        kls.append(
            float(exact.kl(loss_mask / loss_mask.sum(), laboratory.chain.window_distribution(start, 3).flatten()))
        )
    return -float(laboratory.chain.log_prob(x).mean()), statistics.fmean(kls)


def run_all(jobs: list[tuple[Callable[..., list[Any]], tuple[Any, ...]]], workers: int) -> list[Any]:
    """All rows of all jobs; one thread each, since more are slower on networks of this size."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(function, *arguments) for function, arguments in jobs]
        return [row for future in futures for row in future.result()]


def median_table(rows: list[Row]) -> str:
    """Reverse KL / forward KL / entropy, medians over seeds, one line a method."""
    lines = [f"{'':18}" + "".join(f"{f'{steps} steps':>24}" for steps in STEPS)]
    for name in dict.fromkeys(row.method for row in rows):
        cells = []
        for steps in STEPS:
            own = [row for row in rows if row.method == name and row.steps == steps]
            figures = [statistics.median(values) for values in zip(*(row[4:8] for row in own), strict=True)]
            cells.append(f"{figures[0]:.4f} / {figures[1]:.4f} / {figures[3]:.2f}" if own else "")
        lines.append(f"{name:18}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def diversity_table(rows: list[Row], distribution: torch.Tensor) -> str:
    """Agreement and collision of two samples, exact, medians over seeds, one line a method and one for the
    distribution; an asterisk marks students that are less diverse than the distribution."""
    own = f"{float(exact.agreement(distribution)):.1%} / {float(exact.collision(distribution)):.2%}"
    lines = [f"{'':18}" + "".join(f"{f'{steps} steps':>24}" for steps in STEPS), f"{'distribution':18}{own:>24}"]
    for name in dict.fromkeys(row.method for row in rows):
        cells = []
        for steps in STEPS:
            own_rows = [row for row in rows if row.method == name and row.steps == steps]
            if not own_rows:
                cells.append("")
                continue
            mark = "* " if collapse_of_median(own_rows, distribution) else ""
            agreement, collision = (median_of(own_rows, name) for name in ("agreement", "collision"))
            cells.append(f"{mark}{agreement:.1%} / {collision:.2%}")
        lines.append(f"{name:18}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def median_of(rows: list[Row], figure: str) -> float:
    """Median over seeds of a figure."""
    return statistics.median(getattr(row, figure) for row in rows)


def collapse_of_median(rows: list[Row], distribution: torch.Tensor) -> str:
    """The word "collapsed" and the figures, where two samples of the median student agree too often; exact, without
    error."""
    reference = {"agreement": Estimate(float(exact.agreement(distribution)), 0.0)}
    return collapse_of({"agreement": Estimate(median_of(rows, "agreement"), 0.0)}, reference)


def closed(rows: list[Row], method: str, steps: int, distribution: torch.Tensor) -> float | str:
    """Fraction of the distance from teacher to optimum that the median student has crossed, reverse KL; "collapsed" and
    the figures for a student that is less diverse than the distribution."""

    def rows_of(name: str) -> list[Row]:
        return [row for row in rows if row.method == name and row.steps == steps]

    teacher, student, optimum = (median_of(rows_of(name), "reverse_kl") for name in ("teacher", method, "optimal"))
    return collapse_of_median(rows_of(method), distribution) or (teacher - student) / (teacher - optimum)


def print_rows(rows: list[Any], *figures: str) -> None:
    """Method, steps and the named figures, one line a row."""
    for row in rows:
        print(f"  {row.method:18}{row.steps:3} steps" + "".join(f"{getattr(row, name):10.4f}" for name in figures))


def write_csv(path: Path, rows: list[Any]) -> None:
    """One line a row."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(rows[0]._fields)
        writer.writerows(rows)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=list(USUAL_METHODS), choices=METHODS)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    started = time.perf_counter()
    rows = run_all(jobs_of(arguments), arguments.workers)
    report(rows, arguments, time.perf_counter() - started)


def jobs_of(arguments: argparse.Namespace) -> list[tuple[Callable[..., list[Any]], tuple[Any, ...]]]:
    """What is to be computed, roughly the longest first, so that the workers end together."""
    jobs: list[tuple[Callable[..., list[Any]], tuple[Any, ...]]] = []
    if "distances" in arguments.parts:
        jobs += [(distances, (name, seed)) for name in arguments.methods[::-1] for seed in arguments.seeds]
        jobs += [(distances, ("teacher", 0)), *((optimum, (steps,)) for steps in OPTIMUM_SEEDS)]
    if "large" in arguments.parts:
        jobs += [(large, (name, 0)) for name in ("defaults", "paper") if name in arguments.methods]
        jobs += [(large, ("teacher", 0))]
    if "sources" in arguments.parts:
        jobs += [
            (sources, (name, arguments.seeds[0], steps)) for name in attribution.SOURCES for steps in attribution.STEPS
        ]
        jobs += [(source_ends, ())]
    return jobs


def report(rows: list[Any], arguments: argparse.Namespace, seconds: float) -> None:
    """Tables to the terminal, figures to files."""
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    measured = [row for row in rows if isinstance(row, Row) and row.part == "distances"]
    attributed = [row for row in rows if isinstance(row, Row) and row.part == "sources"]
    large_rows = [row for row in rows if isinstance(row, LargeRow)]
    written = ["exact.json"]
    fractions = {}
    if measured:
        chain, length = exact.small_chain()
        distribution, distribution_entropy = chain.distribution(length), chain.entropy(length)
        print(
            f"reverse KL / forward KL / entropy, nats; entropy of the distribution {distribution_entropy:.2f}; "
            "medians over seeds"
        )
        print(median_table(measured))
        print(
            "two samples agree at a position / are one sequence, exact, medians over seeds; * less diverse than the "
            "distribution"
        )
        print(diversity_table(measured, distribution))
        fractions = {
            name: {steps: closed(measured, name, steps, distribution) for steps in (2, 4)} for name in arguments.methods
        }
        print("closed of the distance from teacher to optimum at 2 and 4 steps:")
        for name, by_steps in fractions.items():
            shown = [f"{value:8.0%}" if isinstance(value, float) else f"  {value}" for value in by_steps.values()]
            print(f"  {name:18}" + "".join(shown))
        plot_distances(measured, folder / "exact-distances.png")
        write_csv(folder / "exact.csv", measured)
        written += ["exact.csv", "exact-distances.png"]
    if attributed:
        print("where it is lost (3 words, length 5), reverse KL:")
        print_rows(attributed, "reverse_kl")
        plot_attribution(attributed, folder / "exact-attribution.png")
        write_csv(folder / "exact-sources.csv", attributed)
        written += ["exact-sources.csv", "exact-attribution.png"]
    if large_rows:
        print("8 words, length 16: nats a sequence under the chain, trigram KL")
        print_rows(large_rows, "chain_nats", "trigram_kl")
        write_csv(folder / "exact-large.csv", large_rows)
        written.append("exact-large.csv")
    summary = {
        "command": f"python -m benchmarks.exact --seeds {' '.join(map(str, arguments.seeds))} "
        f"--workers {arguments.workers} --parts {' '.join(arguments.parts)} --methods "
        + " ".join(f"'{name}'" for name in arguments.methods),
        "machine": f"{platform.machine()} CPU, {arguments.workers} processes of one thread, fp32, distributions in "
        "fp64",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "seconds": round(seconds, 1),
        "closed": fractions,
        "training": {name: asdict(METHODS[name].training) for name in arguments.methods},
    }
    (folder / "exact.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(f"{seconds:.0f} s; in {folder}: {', '.join(written)}")


if __name__ == "__main__":
    main()
