"""How much of a gradient is signal, on text: `python -m benchmarks.signal`.

The demo's student, auxiliary and text. After some updates the networks are kept fixed, and the student's gradient is
estimated from many batches of paths of 8 steps, from the same paths for each choice: how far a token's credit reaches,
how many corruptions, how many steps of the path keep a graph. From products of gradients of different batches:

    signal = |E g|^2    noise = E |g|^2 - |E g|^2    cosine = <E g, E g'> / |E g| |E g'|,  g' of the first choice

of which products are estimated without bias. Advantages are over their batch's deviation, so that noise is alike; what
differs is how much survives of the mean. Prints a table, writes JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from discrete_distill.distillation.methods import DiDiInstruct, with_changes
from discrete_distill.distillation.networks import Networks
from discrete_distill.distillation.rollout import Rollout
from discrete_distill.recipes.common.distill import Distillation
from discrete_distill.recipes.text.run import text_run
from discrete_distill.recipes.text.settings import PRESETS

STEPS = 8


class Choice(NamedTuple):
    """What differs."""

    window: int
    corruptions: int = 4
    kept_steps: int = STEPS


CHOICES = {
    "own token": Choice(0),
    "within 2": Choice(2),
    "within 6": Choice(6),
    "within 30": Choice(30),
    "own token, 1 corruption": Choice(0, corruptions=1),
    "own token, 2 of 8 steps": Choice(0, kept_steps=2),
}


@dataclass
class Moments:
    """Sums over batches that the estimates are made of."""

    batches: int = 0
    total: Tensor | float = 0.0
    squares: float = 0.0
    products: float = 0.0  # with the first choice's gradient of the same batch
    seconds: float = 0.0

    def add(self, gradient: Tensor, reference: Tensor, seconds: float) -> None:
        """One batch."""
        self.batches += 1
        self.total = self.total + gradient
        self.squares += float(gradient @ gradient)
        self.products += float(gradient @ reference)
        self.seconds += seconds

    @property
    def pairs(self) -> int:
        """Of different batches."""
        return self.batches * (self.batches - 1)

    @property
    def signal(self) -> float:
        """``|E g|^2``, unbiased; it may come out negative where there is little."""
        assert isinstance(self.total, Tensor)
        return (float(self.total @ self.total) - self.squares) / self.pairs

    def cosine(self, first: Moments) -> float:
        """Between means; NaN where one of them is lost in noise."""
        assert isinstance(self.total, Tensor)
        assert isinstance(first.total, Tensor)
        product = (float(self.total @ first.total) - self.products) / self.pairs
        lengths = self.signal * first.signal
        return product / math.sqrt(lengths) if self.signal > 0.0 and first.signal > 0.0 else math.nan


class Subject:
    """Networks after some updates of the demo, kept fixed."""

    def __init__(self, updates: int, threads: int) -> None:
        config = PRESETS["demo"]()
        config.threads = threads
        self.run = text_run(config, "")
        torch.manual_seed(config.seed)
        stream, process = self.run.streams["train"], self.run.process
        accelerator, teacher = self.run.accelerator, self.run.load_teacher()
        self.distillation = Distillation(config.distill, teacher, stream, process, accelerator)
        self.g = Generator().manual_seed(config.seed)
        for index in range(updates):
            self.distillation.step(index, self.g)
        self.shape = (config.distill.batch_size, stream.length)
        self.base = with_changes(
            config.distill.method,
            paths={"num_steps": (STEPS,), "gradient_steps": None},
            advantages={"group_size": config.distill.batch_size},
        )
        self.parameters = [p for p in self.distillation.method.student.parameters() if p.requires_grad]

    def method(self, choice: Choice) -> DiDiInstruct:
        """The same networks under other settings."""
        made = self.distillation.method
        credit = {"window": choice.window, "corruption": {"num_draws": choice.corruptions}}
        config = with_changes(self.base, credit=credit)
        return DiDiInstruct(Networks(made.student, made.teacher, auxiliary=made.auxiliary), made.process, config)

    def rollout(self) -> Rollout:
        """Paths of 8 steps, all with their graph."""
        with self.run.accelerator.autocast():
            return self.method(Choice(0)).rollout(*self.shape, generator=self.g)

    def gradient(self, rollout: Rollout, choice: Choice) -> Tensor:
        """One estimate, flattened."""
        kept = torch.randperm(STEPS, generator=self.g)[: choice.kept_steps].tolist()
        steps = [
            step if place in kept else replace(step, logits_NV=step.logits_NV.detach())
            for place, step in enumerate(rollout.steps)
        ]
        with self.run.accelerator.autocast():
            loss = self.method(choice).student_loss(replace(rollout, steps=steps), generator=self.g).loss
        scaled = loss * (STEPS / choice.kept_steps)
        gradients = torch.autograd.grad(scaled, self.parameters, retain_graph=True, allow_unused=True)
        pieces = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, self.parameters, strict=True)]
        return torch.cat([piece.flatten().float() for piece in pieces])


def measure(subject: Subject, batches: int) -> dict[str, Moments]:
    """All choices on the same paths."""
    moments = {name: Moments() for name in CHOICES}
    for _ in range(batches):
        rollout = subject.rollout()
        reference: Tensor | None = None
        for name, choice in CHOICES.items():
            started = time.perf_counter()
            gradient = subject.gradient(rollout, choice)
            reference = gradient if reference is None else reference
            moments[name].add(gradient, reference, time.perf_counter() - started)
    return moments


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=12, help="of 24 paths")
    parser.add_argument("--updates", type=int, default=20, help="of the student before it is kept fixed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    moments = measure(Subject(arguments.updates, arguments.threads), arguments.batches)
    first = next(iter(moments.values()))
    lines = []
    print(f"{'credit':26}{'signal / noise':>16}{'cosine':>10}{'seconds':>10}")
    for name, each in moments.items():
        noise = each.squares / each.batches - each.signal
        cosine = each.cosine(first)
        line = {
            "choice": name,
            "signal": each.signal,
            "noise": noise,
            "signal_to_noise": each.signal / noise,
            "cosine": None if math.isnan(cosine) else cosine,
            "seconds": each.seconds / each.batches,
        }
        lines.append(line)
        print(f"{name:26}{each.signal / noise:16.4f}{cosine:10.2f}{line['seconds']:10.1f}")
    provenance = {
        "command": f"python -m benchmarks.signal --batches {arguments.batches} --updates {arguments.updates} "
        f"--threads {arguments.threads}",
        "machine": f"{platform.machine()} CPU, {arguments.threads} threads",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "seeds": [0],
        "lines": lines,
    }
    (arguments.output / "signal.json").write_text(json.dumps(provenance, indent=1) + "\n")


if __name__ == "__main__":
    main()
