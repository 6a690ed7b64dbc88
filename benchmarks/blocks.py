"""What a cache of keys and values saves when text is drawn in blocks.

A network of 135M parameters with random weights draws 128 tokens behind a prompt of 512, in blocks of 32: without a
cache, with the exact one of attention by blocks, and with Fast-dLLM's approximations of attention both ways, from the
same weights, in one run; beside them the same tokens one after another, as an autoregressive model draws them. And the
cost of a block as the text grows to 4096 tokens. Writes CSV, JSON and a plot, after every setting. `--dry-run` walks
through all of it with tiny shapes; its times mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from benchmarks.gpu_run import write_json, write_table
from benchmarks.samplers import Timed, about, random_transformer
from discrete_distill import BlockwiseSampler, ConfidenceSampler, MaskedDiffusion
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.samplers.blockwise import Cache

METHODS: dict[str, Cache | None] = {"no cache": None, "exact": "exact", "prefix": "prefix", "dual": "dual"}
GOALS = {"exact": 4.0, "prefix": 1.7, "dual": 3.0}
ONE_BY_ONE = "one token after another"
PARTS = ("batch-1", "growth", "batch-4")


@dataclass
class Run:
    """Shapes and rows.

    Attributes:
        folder: of the results.
        document: what is written beside the rows.
        dry: tiny shapes.
        rounds: of each setting.
        rows: of the table.
        growth: of the plot: tokens before a block, and its seconds.
    """

    folder: Path
    document: dict[str, Any]
    dry: bool
    rounds: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    growth: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    @property
    def block_length(self) -> int:
        """Positions in a block."""
        return 4 if self.dry else 32

    def network(self, block_length: int | None) -> DiT:
        """The same random weights with attention by blocks, or both ways."""
        tiny = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 100}
        shape = tiny if self.dry else {"vocab_size": 28_000}
        return random_transformer(DiTConfig(**shape, max_length=4096, block_length=block_length))

    def save(self) -> None:
        """Write what there is."""
        write_table(self.folder / "blocks.csv", self.rows)
        write_json(self.folder / "blocks.json", {**self.document, "goals": judge(self.rows), "growth": self.growth})


def timed(call: Callable[[], Any]) -> tuple[Timed, Any]:
    """Seconds that the process computed and seconds by the clock, and what the call returned."""
    clock, computed = time.perf_counter(), time.process_time()
    returned = call()
    return Timed(time.process_time() - computed, time.perf_counter() - clock), returned


def ratios(run: Run, batch: int) -> None:
    """128 tokens behind 512, 4 and 8 steps a block; every method in every round."""
    prompt, new = (8, 8) if run.dry else (512, 128)
    networks = {"exact": run.network(run.block_length)}
    networks |= dict.fromkeys(["no cache", "prefix", "dual"], run.network(None))
    run.document["parameters"] = sum(each.numel() for each in networks["exact"].parameters())
    process = MaskedDiffusion(networks["exact"].config.vocab_size - 1)
    by_one, shape = run.network(1), networks["exact"].config
    kept_MB = 8 * shape.num_layers * shape.hidden_size * batch * (prompt + new) / 2**20  # keys and values in fp32
    x = torch.randint(process.mask_token_id, (batch, prompt), generator=Generator().manual_seed(0))
    alone = [timed(lambda x=x: one_by_one(by_one, x, new))[0] for _ in range(run.rounds)]
    for steps in (4, 8):
        inner = ConfidenceSampler(process, num_steps=steps)
        taken: dict[str, list[Timed]] = {ONE_BY_ONE: alone, **{name: [] for name in METHODS}}
        facts: dict[str, Any] = {ONE_BY_ONE: {"tokens_per_forward": 1.0}}
        for _ in range(run.rounds):
            for name, cache in METHODS.items():
                sampler = BlockwiseSampler(
                    inner, block_length=run.block_length, align="start", cache=cache, max_new_tokens=new
                )
                seconds, out = timed(
                    lambda name=name, sampler=sampler, x=x: sampler(
                        networks[name], x_init=x, generator=Generator().manual_seed(0)
                    )
                )
                taken[name].append(seconds)
                counted = ("nfe", "commits", "network_evaluations", "tokens_per_forward")
                facts[name] = {each: getattr(out, each) for each in counted}
        for name, rounds in taken.items():
            seconds = [each.seconds for each in rounds]
            base = [each.seconds for each in taken["no cache"]]
            row = {
                "batch": batch,
                "steps": steps,
                "method": name,
                "rounds": len(seconds),
                "seconds": statistics.median(seconds),
                "seconds_least": min(seconds),
                "seconds_most": max(seconds),
                "clock_seconds": statistics.median(each.clock_seconds for each in rounds),
                "times_faster": statistics.median(b / s for b, s in zip(base, seconds, strict=True)),
                **facts[name],
                "cache_MB": 0.0 if name == "no cache" else kept_MB,
            }
            run.rows.append(row)
            print({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}, flush=True)
        run.save()


@torch.no_grad()
def one_by_one(network: DiT, x: Tensor, new: int) -> None:
    """An autoregressive model of the same size: each pass reads one token, keeps its keys and predicts the next."""
    cache = network.prefill(x)
    for _ in range(new):
        assert cache.features is not None
        token = network.project(cache.features[:, -1]).argmax(-1, keepdim=True)
        network.commit(token, cache)


def growth(run: Run) -> None:
    """Seconds of a block of two steps as text grows to 4096 tokens; without a cache, two passes over so many tokens."""
    total, steps = (32, 2) if run.dry else (4096, 2)
    network = run.network(run.block_length)
    process = MaskedDiffusion(network.config.vocab_size - 1)
    inner = ConfidenceSampler(process, num_steps=steps)
    sampler = BlockwiseSampler(inner, block_length=run.block_length, align="start", cache="exact")
    seconds, started = [], time.process_time()
    for block in sampler.stream(network, (1, total), generator=Generator().manual_seed(0)):
        seconds.append((int(block.positions[0, 0]), time.process_time() - started))
        started = time.process_time()
    run.growth["exact"] = seconds
    run.growth["no cache"] = []
    for length in (total // 8, total // 4, total // 2, total):
        x = torch.full((1, length), process.mask_token_id)
        with torch.no_grad():
            passed, _ = timed(lambda x=x: network.features(x, torch.ones(1)))
        run.growth["no cache"].append((length, steps * passed.seconds))
        run.save()


def judge(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals, and what was measured."""
    return [
        {
            "goal": f"{row['method']}, batch {row['batch']}, {row['steps']} steps, times faster",
            "wanted": f">= {GOALS[row['method']]}",
            "measured": row["times_faster"],
            "met": row["times_faster"] >= GOALS[row["method"]],
        }
        for row in rows
        if row["method"] in GOALS
    ]


def plot(run: Run) -> None:
    """``blocks.png``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.6))
    for (name, points), colour in zip(run.growth.items(), ("#1b6ca8", "#c8553d"), strict=False):
        marker = "." if name == "exact" else "o"
        axis.plot(*zip(*points, strict=True), marker, color=colour, label=name, linestyle="-", linewidth=0.8)
    axis.set(xlabel="tokens before the block", ylabel="seconds a block of two steps", yscale="log")
    axis.legend(frameon=False)
    where = f"{run.document['cpu']}, {run.document['threads']} thread(s)"
    figure.text(0.995, 0.005, where, ha="right", va="bottom", size=7, color="#666666")
    figure.tight_layout()
    figure.savefig(run.folder / "blocks.png", dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Time, print, write after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"), help="folder of CSV, JSON and plot")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="parts to run")
    parser.add_argument("--rounds", type=int, default=1, help="of each setting")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes: shows that the program runs")
    options = parser.parse_args(argv)
    command = f"python -m benchmarks.blocks --rounds {options.rounds}" + " --dry-run" * options.dry_run
    document = {**about(command), "seeds": "0 for weights, prompts and draws"}
    run = Run(options.output, document, options.dry_run, options.rounds)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        if name == "growth":
            growth(run)
        else:
            ratios(run, int(name.removeprefix("batch-")))
    run.save()
    if run.growth:
        plot(run)


if __name__ == "__main__":
    main()
