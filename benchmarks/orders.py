"""What the order of unmasking costs, without any training: `python -m benchmarks.orders`.

The random order of the reverse process against the strided one, in which masks that share a step lie apart:

- on a language of which everything is known, the exact distance of the sampler's distribution from it, in nats, with a
  perfect denoiser, so that parallel draws are the only error;
- on the bundled text teacher, perplexity at the entropy of held-out text, over seeds of sampling;
- on the shipped Sudoku teacher, the share of valid grids, empty and with 8 clues, beside the order of confidence.

Prints tables; writes JSON.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from benchmarks.gpu_run import write_json
from discrete_distill import AncestralSampler, ConfidenceSampler, MaskedDiffusion, exact
from discrete_distill.evaluation import measure_frontier_around, sample_entropy
from discrete_distill.evaluation.tasks import Prompts, measure_task
from discrete_distill.process import UnmaskingOrder
from discrete_distill.recipes.common.tables import markdown_table
from discrete_distill.recipes.tasks.decoding import Decoded, Decoding, decode
from discrete_distill.recipes.tasks.run import TaskRun
from discrete_distill.recipes.tasks.settings import TaskConfig
from discrete_distill.recipes.text.judge_loading import load_judge_for
from discrete_distill.recipes.text.run import text_run
from discrete_distill.recipes.text.settings import demo

ORDERS: tuple[UnmaskingOrder, ...] = ("random", "strided")


def strided_distribution(denoiser: Any, mask: int, vocab_size: int, length: int, num_steps: int) -> Tensor:
    """Probabilities of all sequences, ``[vocab_size] * length``: a product over steps, averaged over starts."""
    words = exact.enumerate_sequences(vocab_size, length)
    position, total = torch.arange(length), torch.zeros(len(words), dtype=torch.float64)
    for start in range(num_steps):
        step_of = (position + start) % num_steps
        log_prob = torch.zeros_like(total)
        for step in range(num_steps):
            x_t = torch.where(step_of < step, words, mask)
            log_probs = denoiser(x_t, torch.ones(len(words))).double().log_softmax(-1)
            log_prob += (log_probs.gather(2, words[..., None])[..., 0] * (step_of == step)).sum(1)
        total += log_prob.exp() / num_steps
    return total.view([vocab_size] * length)


def on_the_chain() -> Iterator[dict[str, Any]]:
    """Exact distances on the small chain; the mask is the last class."""
    chain, length = exact.small_chain()
    mask, language = chain.vocab_size, chain.distribution(length)
    denoiser, process = chain.denoiser(mask), MaskedDiffusion(mask)
    for steps in (1, 2, 3, 6):
        for order in ORDERS:
            if order == "random":
                times = exact.uniform_times(steps)
                drawn = exact.sampler_distribution(denoiser, process, times, length, mask, time_dependent=False)
            else:
                drawn = strided_distribution(denoiser, mask, mask, length, steps)
            yield {
                "order": order,
                "steps": steps,
                "reverse_kl": max(0.0, float(exact.kl(drawn, language))),
                "forward_kl": max(0.0, float(exact.kl(language, drawn))),
            }


def on_text(steps: tuple[int, ...], seeds: tuple[int, ...], num_samples: int, threads: int) -> Iterator[dict[str, Any]]:
    """The bundled teacher under the bundled judge."""
    config = demo()
    config.threads, config.precision = threads, "fp32"
    run = text_run(config, "")
    teacher, judge = run.load_teacher(), load_judge_for("bundled", run.tokenizer)
    heldout = run.streams["heldout"].packed(1024)
    entropy = float(sample_entropy(heldout).mean())
    for num_steps in steps:
        for order in ORDERS:

            def sample(
                temperature: float, seed: int, num_steps: int = num_steps, order: UnmaskingOrder = order
            ) -> Tensor:
                sampler = AncestralSampler(run.process, num_steps=num_steps, temperature=temperature, order=order)
                return sampler(teacher, (num_samples, 128), generator=Generator().manual_seed(seed)).sequences

            frontier = measure_frontier_around(
                entropy, sample, judge, method=f"teacher, {order}, {num_steps} steps", seeds=seeds,
                temperatures=(0.88, 0.96), spacing=0.08, limits=(0.5, 1.4), data=heldout[1::2],
            )  # fmt: skip
            read = frontier.read(entropy)
            yield {
                "order": order,
                "steps": num_steps,
                "perplexity": read.perplexity,
                "standard_error": read.standard_error,
                "agreement": read.diversity["agreement"].value if read.diversity else None,
            }


def on_sudoku(steps: tuple[int, ...], num_prompts: int) -> Iterator[dict[str, Any]]:
    """The shipped teacher of 6x6 grids."""
    run = TaskRun(TaskConfig(precision="fp32"), "")
    teacher, process = run.load_teacher(), run.process
    for clues in (0, 8):
        task = run.named.with_clues(clues) if clues else run.named.task
        for num_steps in steps:
            samplers: dict[str, Any] = {
                "random": AncestralSampler(process, num_steps=num_steps),
                "strided": AncestralSampler(process, num_steps=num_steps, order="strided"),
                "confidence": ConfidenceSampler(process, num_steps=num_steps),
            }
            for name, sampler in samplers.items():
                one = Decoding(name=name, setting="", sampler=sampler)

                def sample(prompts: Prompts, generator: Generator | None, one: Decoding = one) -> Decoded:
                    return decode(one, teacher, prompts, generator)

                figures = measure_task(task, sample, num_prompts=num_prompts, generator=Generator().manual_seed(0))
                value, n = figures.accuracy.value, num_prompts
                yield {
                    "order": name,
                    "clues": clues,
                    "steps": num_steps,
                    "right": value,
                    "standard_error": math.sqrt(value * (1.0 - value) / n),
                }


def table_of(rows: list[dict[str, Any]]) -> str:
    """All figures of some rows."""
    shown = [[f"{each:.4g}" if isinstance(each, float) else str(each) for each in row.values()] for row in rows]
    return markdown_table(list(rows[0]), shown)


def main(arguments: list[str] | None = None) -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/orders.json"))
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--grids", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    torch.set_num_threads(options.threads)
    grids = tuple(steps for steps in options.steps if steps <= 32)
    parts = {
        "chain": on_the_chain(),
        "sudoku": on_sudoku(grids, options.grids),
        "text": on_text(tuple(options.steps), tuple(options.seeds), options.samples, options.threads),
    }
    results: dict[str, Any] = {
        "command": "python -m benchmarks.orders",
        "machine": f"{platform.machine()} CPU, {options.threads} threads, fp32",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
    }
    for name, part in parts.items():
        results[name] = list(part)
        print(f"{name}\n\n{table_of(results[name])}\n", flush=True)
    results["seconds"] = time.perf_counter() - started
    write_json(options.out, results)


if __name__ == "__main__":
    main()
