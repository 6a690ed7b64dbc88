"""What a distillation step costs, beside the authors' loop with the same networks: `python -m benchmarks.training`.

Steps of both are timed in turn in one run, so that what else the machine does falls on both. Writes CSV and JSON.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor

from benchmarks.published_loop import PublishedLoop
from discrete_distill.distillation.methods import DiDiInstruct, DiDiInstructConfig
from discrete_distill.distillation.networks import Networks
from discrete_distill.models import Discriminator, DiT, DiTConfig
from discrete_distill.process import MaskedDiffusion

SIZES = {
    "demo": DiTConfig(vocab_size=2048, max_length=64, hidden_size=192, num_layers=6, num_heads=3, cond_size=32),
    "small": DiTConfig(vocab_size=50258, max_length=1024, hidden_size=768, num_layers=12, num_heads=12),
}


class SizedNetworks:
    """Student, teacher and discriminator of one size, with random weights, and their optimisers."""

    def __init__(self, config: DiTConfig) -> None:
        torch.manual_seed(0)
        teacher = DiT(config).eval()
        for parameter in teacher.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)  # A head of zeros would make softmax unusually cheap.
        self.process = MaskedDiffusion(config.vocab_size - 1)
        self.teacher = teacher.requires_grad_(False)
        self.student = copy.deepcopy(teacher).requires_grad_(True)
        self.discriminator = Discriminator.from_denoiser(teacher)
        self.optimizers = [torch.optim.AdamW(net.parameters(), lr=1e-6) for net in (self.student, self.discriminator)]

    def update(self, index: int, loss: Tensor) -> None:
        """Backward and one step of one optimiser."""
        loss.backward()
        self.optimizers[index].step()
        self.optimizers[index].zero_grad(set_to_none=True)


def published_step(networks: SizedNetworks, batch: int, length: int) -> Callable[[Generator], None]:
    """A step of the authors' loop."""
    loop = PublishedLoop(
        networks.student, networks.teacher, networks.discriminator, networks.process, DiDiInstructConfig.paper()
    )

    def step(g: Generator) -> None:
        states, tau = loop.sample(batch, length, g)
        reference = torch.randint(networks.process.mask_token_id, (batch, length), generator=g)
        loss, x_t = loop.discriminator_loss(states[-1], reference, tau, g)
        networks.update(1, loss)
        networks.update(0, loop.student_loss(states, x_t, tau))

    return step


def library_step(
    networks: SizedNetworks, batch: int, length: int, *, reuse_discriminator_logits: bool
) -> Callable[[Generator], None]:
    """The same method from this library; the reward from the pass that trains the discriminator, or from another."""
    config = DiDiInstructConfig.paper(log_ratio={"reuse_logits": reuse_discriminator_logits})
    method = DiDiInstruct(
        Networks(networks.student, networks.teacher, discriminator=networks.discriminator), networks.process, config
    )

    def step(g: Generator) -> None:
        rollout = method.rollout(batch, length, generator=g)
        reference = torch.randint(networks.process.mask_token_id, (batch, length), generator=g)
        judged = method.discriminator_loss(rollout, reference, generator=g)
        networks.update(1, judged.loss)
        networks.update(0, method.student_loss(rollout, log_ratio_output=judged.log_ratio_output, generator=g).loss)

    return step


def time_in_turn(steps: dict[str, Callable[[Generator], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each step, in rounds, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_index in range(repeats + 1):
        for name, step in steps.items():
            generator = Generator().manual_seed(round_index)
            started = time.perf_counter()
            step(generator)
            if round_index:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="demo")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    networks = SizedNetworks(SIZES[arguments.size])
    steps = {
        "authors' loop": published_step(networks, arguments.batch, arguments.length),
        "discrete_distill": library_step(networks, arguments.batch, arguments.length, reuse_discriminator_logits=True),
        "discrete_distill, discriminator evaluated again": library_step(
            networks, arguments.batch, arguments.length, reuse_discriminator_logits=False
        ),
    }
    seconds = time_in_turn(steps, arguments.repeats)
    theirs = seconds["authors' loop"]
    ratios = {name: sorted(b / a for a, b in zip(theirs, ours, strict=True)) for name, ours in seconds.items()}
    result = {
        "command": f"python -m benchmarks.training --size {arguments.size} --batch {arguments.batch} "
        f"--length {arguments.length} --repeats {arguments.repeats}",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, fp32",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "median_seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "spread_seconds": {name: [min(times), max(times)] for name, times in seconds.items()},
        "ratio_median": {name: statistics.median(values) for name, values in ratios.items()},
        "ratio_spread": {name: [values[0], values[-1]] for name, values in ratios.items()},
    }
    print(json.dumps(result, indent=1))
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"training-{arguments.size}.json").write_text(json.dumps(result, indent=1) + "\n")
    with (arguments.output / f"training-{arguments.size}.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["round", *seconds])
        writer.writerows([index, *values] for index, values in enumerate(zip(*seconds.values(), strict=True)))


if __name__ == "__main__":
    main()
