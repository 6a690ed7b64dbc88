"""How noisy each estimate of the gradient is, and what it costs: `python -m benchmarks.estimators`.

A student of two steps over three words and length 5, its distribution and every log-ratio exact, so that all that
differs is the estimator. For each, from many batches: the variance of one sample's gradient (trace of the covariance,
as a multiple of the squared length of the mean gradient), the network evaluations that a sample takes, their product,
which is what a gradient of a given quality costs, and the cosine between the mean and the exact gradient. Writes CSV
and JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from discrete_distill import exact
from discrete_distill.distillation.divergence import AuxiliaryDenoiserLogRatio, ExactLogRatio, ScoreFunctionIntegralKL
from discrete_distill.distillation.paths import IntermediateStateMatcher
from discrete_distill.distillation.rewards import RunningMean
from discrete_distill.process import BetaTime, MaskedDiffusion, StratifiedTime, UniformTime

WORDS, LENGTH, STEPS, BATCH = 3, 5, 2, 64


class Problem:
    """A student some way from its teacher, and the exact gradients of the two objectives."""

    def __init__(self) -> None:
        self.process = MaskedDiffusion(WORDS)
        self.chain = exact.random_chain(WORDS, Generator().manual_seed(1), 0.4)
        self.times = exact.uniform_times(STEPS)
        teacher = self.chain.denoiser(WORDS, impossible="uniform")
        self.student = exact.TabularDenoiser(LENGTH, WORDS, WORDS, self.times).copy_from(teacher, self.process)
        with torch.no_grad():
            self.student.logits.clamp_(min=-5.0)
        distribution, target = self.distribution(), self.chain.distribution(LENGTH)
        self.ratio = exact.log_ratio(distribution.detach(), target, self.process)
        self.auxiliary = exact.DistributionDenoiser(distribution.detach(), WORDS)
        self.teacher = exact.DistributionDenoiser(target, WORDS)
        self.integral_kl_gradient = self._gradient(
            lambda: exact.integral_kl(self.distribution(), target, self.process, one)
        )
        self.kl_gradient = self._gradient(lambda: exact.kl(self.distribution(), target))

    def distribution(self) -> Tensor:
        """Of the student, differentiable."""
        return exact.sampler_distribution(self.student, self.process, self.times, LENGTH, WORDS)

    def _gradient(self, value: Callable[[], Tensor]) -> Tensor:
        (gradient,) = torch.autograd.grad(value(), self.student.logits)
        return gradient.flatten()

    def of_states(self) -> ExactLogRatio:
        """What a discriminator converges to."""
        return ExactLogRatio(self.process, lambda x_t, t: exact.look_up(self.ratio, x_t))

    def of_tokens(self) -> AuxiliaryDenoiserLogRatio:
        """What an auxiliary denoiser converges to."""
        return AuxiliaryDenoiserLogRatio(self.process, self.auxiliary, self.teacher)


def one(t: Tensor) -> Tensor:
    """The constant weight."""
    return torch.ones_like(t)


class Estimate(NamedTuple):
    """A line of the table: the estimator, its matcher, its groups, and the objective that it goes down."""

    estimator: ScoreFunctionIntegralKL
    group_size: int
    matcher: dict[str, Any]
    objective: str


def estimates(problem: Problem) -> dict[str, Estimate]:
    """All that are compared."""
    process, states, tokens = problem.process, problem.of_states(), problem.of_tokens()

    def by_time(group_size: int = BATCH, matcher: dict[str, Any] | None = None, **choices: Any) -> Estimate:
        return Estimate(ScoreFunctionIntegralKL(process, states, **choices), group_size, matcher or {}, "IKL")

    def by_tokens(group_size: int = BATCH, matcher: dict[str, Any] | None = None, **choices: Any) -> Estimate:
        return Estimate(ScoreFunctionIntegralKL(process, tokens, **choices), group_size, matcher or {}, "KL")

    return {
        "states, no baseline": by_time(baseline="none"),
        "states, running mean": by_time(baseline=RunningMean()),
        "states, batch mean": by_time(baseline="batch", group_size=1),
        "states, group mean, G = 4": by_time(4, baseline="group"),
        "states, leave-one-out, G = 4": by_time(4),
        "states, leave-one-out, G = 64": by_time(),
        "states, leave-one-out over group std, G = 4": by_time(4, scale="group"),
        "states, Beta(2, 2) times, importance weight": by_time(4, time_distribution=BetaTime(0.02, 0.98, a=2.0, b=2.0)),
        "states, stratified times": by_time(4, time_distribution=StratifiedTime()),
        "states, uniform times in [0.02, 0.98]": by_time(4, time_distribution=UniformTime(0.02, 0.98)),
        "states, 4 corruptions, G = 4": by_time(4, corruptions=4),
        "tokens by count": by_tokens(by="count"),
        "tokens by count, 4 corruptions": by_tokens(by="count", corruptions=4),
        "tokens by count, 4, credit to tokens, window 1": by_tokens(
            by="count", corruptions=4, credit="token", window=1
        ),
        "tokens by count, 4, one step of the path": by_tokens(
            by="count", corruptions=4, matcher={"gradient_steps": 1}
        ),
        "tokens by count, 4, branching, G = 8": by_tokens(
            8, by="count", corruptions=4, matcher={"branching": True}, shared_masks=True
        ),
        "tokens in 2 parts": by_tokens(by="parts", corruptions=2),
    }  # fmt: skip


class Measured(NamedTuple):
    """What is written."""

    estimate: str
    objective: str
    relative_variance: float
    evaluations: float
    variance_times_evaluations: float
    cosine: float
    milliseconds: float


def measure(problem: Problem, name: str, estimate: Estimate, batches: int) -> Measured:
    """Many batches of one estimator."""
    matcher = IntermediateStateMatcher(problem.process, num_steps=(STEPS,), **estimate.matcher)
    g = Generator().manual_seed(0)
    gradients = []
    started = time.perf_counter()
    for _ in range(batches):
        rollout = matcher(problem.student, (BATCH, LENGTH), group_size=estimate.group_size, generator=g)
        out = estimate.estimator(
            rollout.sequences, rollout.token_log_probs(), group_size=estimate.group_size, generator=g
        )
        gradients.append(torch.autograd.grad(out.loss, problem.student.logits)[0].flatten())
    seconds = time.perf_counter() - started
    each = torch.stack(gradients)
    variance = BATCH * float(each.var(0).sum())
    truth = problem.kl_gradient if estimate.objective == "KL" else problem.integral_kl_gradient
    relative = variance / float(truth.square().sum())
    evaluations = network_evaluations(estimate)
    return Measured(
        name,
        estimate.objective,
        relative,
        evaluations,
        relative * evaluations,
        float(F.cosine_similarity(each.mean(0), truth, dim=0)),
        1e3 * seconds / batches,
    )


def network_evaluations(estimate: Estimate) -> float:
    """Forward passes and backward passes (of two forwards each) for a sample: student's states but the first, which all
    share, and the ratio's networks, one on states and two on tokens, for each corruption."""
    kept = estimate.matcher.get("gradient_steps") or (1 if estimate.matcher.get("branching") else STEPS)
    student = (STEPS - 1) * (1.0 + 2.0 * kept / STEPS)
    ratio = estimate.estimator.corruptions * (2 if estimate.objective == "KL" else 1)
    return student + ratio


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    problem = Problem()
    print(f"{'':50}{'aim':>5}{'variance':>10}{'evaluations':>13}{'product':>10}{'cosine':>8}{'ms':>7}")
    rows = []
    for name, estimate in estimates(problem).items():
        row = measure(problem, name, estimate, arguments.batches)
        rows.append(row)
        print(
            f"{row.estimate:50}{row.objective:>5}{row.relative_variance:10.1f}{row.evaluations:13.1f}"
            f"{row.variance_times_evaluations:10.1f}{row.cosine:8.3f}{row.milliseconds:7.1f}",
            flush=True,
        )
    write(rows, arguments)


def write(rows: list[Measured], arguments: argparse.Namespace) -> None:
    """CSV and JSON."""
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / "estimators.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(Measured._fields)
        writer.writerows(rows)
    about = {
        "command": f"python -m benchmarks.estimators --batches {arguments.batches}",
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} threads, fp64",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "seed": 0,
        "batch": BATCH,
        "relative_standard_error_of_a_variance": (2.0 / (arguments.batches - 1)) ** 0.5,
    }
    (arguments.output / "estimators.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
