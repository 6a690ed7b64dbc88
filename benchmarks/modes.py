"""Which modes of a language few-step students keep, exactly: `python -m benchmarks.modes`.

The language is a mixture of eight chains whose supports hardly meet, so that the mass of every mode under a sampler is
known. First the best student that there is, for a reverse and for a forward KL; then students that are trained with few
paths an update: by the published method, and with and without what keeps them diverse. Prints tables; writes
`modes.csv`, `modes.json` and `modes.png`.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor

from benchmarks.exact import run_all, write_csv
from benchmarks.gpu_run import write_json
from benchmarks.laboratory import Laboratory, LookUpDenoiser, Training, distil, distribution_of
from benchmarks.modes_plot import plot_modes
from discrete_distill import exact
from discrete_distill.distillation.methods import DataKL, DiDiInstructConfig, PathKL, Regularization

LENGTH = 6
STEPS = (2, 4, 8)
OPTIMAL_STEPS = (1, 2, 4)
OPTIMAL_ITERATIONS = 150
FEW_PATHS = Training(updates=200, batch=24, rate=1e-2, ratio_rate=1e-2)
PATHS: dict[str, Any] = {"advantages": {"group_size": 12}, "credit": {"window": 0}}
METHODS = {
    "published": DiDiInstructConfig.paper(),
    "no control": DiDiInstructConfig.recommended(regularization=Regularization(), **PATHS),
    "KL along the path 0.1": DiDiInstructConfig.recommended(
        regularization=Regularization(path_kl=PathKL(kind="forward", coefficient=0.1)), **PATHS
    ),
    "KL on data 1": DiDiInstructConfig.recommended(
        regularization=Regularization(data_kl=DataKL(coefficient=1.0)), **PATHS
    ),
    "recommended": DiDiInstructConfig.recommended(**PATHS),
}


class Row(NamedTuple):
    """Of one sampler at one number of steps; KLs and entropy in nats, modes as mass over weight."""

    name: str
    seed: int
    steps: int
    reverse_kl: float
    forward_kl: float
    entropy: float
    agreement: float
    modes: tuple[float, ...]


def mixture() -> exact.MarkovMixture:
    """The language."""
    return exact.modal_mixture()


def row_of(name: str, seed: int, steps: int, distribution: Tensor) -> Row:
    """Exact figures of a sampler's distribution over all sequences."""
    language = mixture()
    target = language.distribution(LENGTH)
    modes = (language.mode_mass(distribution) / language.weights).tolist()
    return Row(
        name,
        seed,
        steps,
        float(exact.kl(distribution, target)),
        float(exact.kl(target, distribution)),
        float(exact.entropy(distribution)),
        float(exact.agreement(distribution)),
        tuple(round(mode, 4) for mode in modes),
    )


def optimal(objective: Literal["reverse", "forward"], steps: int) -> list[Row]:
    """The best student that draws the positions of a step independently."""
    generator = Generator().manual_seed(0)
    best = exact.optimal_student(
        mixture(), steps, LENGTH, objective=objective, iterations=OPTIMAL_ITERATIONS, generator=generator
    )
    return [row_of(f"optimal, {objective} KL", 0, steps, best.distribution)]


def teacher() -> list[Row]:
    """The perfect denoiser."""
    laboratory = Laboratory(mixture(), LENGTH)
    with torch.no_grad():
        network = LookUpDenoiser(laboratory)
        return [row_of("teacher", 0, steps, distribution_of(laboratory, network, steps)) for steps in (1, *STEPS)]


def trained(name: str, seed: int, training: Training) -> list[Row]:
    """A student with own-token credit."""
    laboratory = Laboratory(mixture(), LENGTH)
    student = distil(laboratory, LookUpDenoiser(laboratory), METHODS[name], training, seed=seed)
    with torch.no_grad():
        return [row_of(name, seed, steps, distribution_of(laboratory, student, steps)) for steps in STEPS]


def table(rows: list[Row]) -> str:
    """One line for each sampler and number of steps; medians over seeds, and the extremes of modes over all seeds."""
    lines = [
        "| sampler | steps | reverse KL | forward KL | entropy | two samples agree | smallest mode | largest mode |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, steps in dict.fromkeys((row.name, row.steps) for row in rows):
        own = [row for row in rows if (row.name, row.steps) == (name, steps)]
        reverse, forward, entropy, agreement = (
            statistics.median(values) for values in zip(*(row[3:7] for row in own), strict=True)
        )
        modes = [mode for row in own for mode in row.modes]
        lines.append(
            f"| {name} | {steps} | {reverse:.3f} | {forward:.3f} | {entropy:.2f} | {100 * agreement:.1f}% | "
            f"{min(modes):.2f} | {max(modes):.2f} |"
        )
    return "\n".join(lines)


def panels(rows: list[Row], seed: int) -> list[tuple[str, Row]]:
    """What the plot shows, with titles: the teacher, the two optima, and students with and without control."""
    by_key = {(row.name, row.seed, row.steps): row for row in rows}
    return [
        ("teacher, 2 steps", by_key["teacher", 0, 2]),
        ("best, reverse KL, 2 steps", by_key["optimal, reverse KL", 0, 2]),
        ("best, forward KL, 2 steps", by_key["optimal, forward KL", 0, 2]),
        ("trained, no control, 8 steps", by_key["no control", seed, 8]),
        ("trained, recommended, 8 steps", by_key["recommended", seed, 8]),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Compute, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=FEW_PATHS.updates)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    training = replace(FEW_PATHS, updates=options.updates)
    jobs: list[Any] = [(teacher, ())]
    jobs += [(optimal, (objective, steps)) for steps in OPTIMAL_STEPS for objective in ("reverse", "forward")]
    jobs += [(trained, (name, seed, training)) for name in METHODS for seed in options.seeds]
    rows: list[Row] = run_all(jobs, options.workers)
    seconds = time.perf_counter() - started
    language = mixture()
    target = language.distribution(LENGTH)
    print(
        f"entropy of the language {float(exact.entropy(target)):.2f} nats, two sequences agree at "
        f"{float(exact.agreement(target)):.1%}; modes are masses over weights: 1 is right"
    )
    print(table(rows))
    options.output.mkdir(parents=True, exist_ok=True)
    write_csv(options.output / "modes.csv", rows)
    plot_modes(panels(rows, options.seeds[0]), language.weights.tolist(), options.output / "modes.png")
    about = {
        "command": f"python -m benchmarks.modes --seeds {' '.join(map(str, options.seeds))} --updates "
        f"{options.updates} --workers {options.workers}",
        "machine": f"{platform.machine()} CPU, {options.workers} processes of one thread, fp32, distributions in fp64",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "seconds": round(seconds, 1),
        "weights": language.weights.tolist(),
        "training": asdict(training),
        "rows": [row._asdict() for row in rows],
    }
    write_json(options.output / "modes.json", about)
    print(f"{seconds:.0f} s; in {options.output}: modes.csv, modes.json, modes.png")


if __name__ == "__main__":
    main()
