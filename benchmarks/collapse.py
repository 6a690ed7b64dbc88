"""What figures between samples say of collapses that equal entropy cannot see: `python -m benchmarks.collapse`.

Sets of samples with about the entropy of the bundled text: text itself, one text with some of its tokens replaced, few
texts repeated, and the bundled teacher at several temperatures. Prints a table and writes `collapse.json` with command,
versions and seed to `--output`.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from benchmarks.gpu_run import write_json
from discrete_distill import AncestralSampler, MaskedDiffusion
from discrete_distill.evaluation import lost_diversity, measure_between_samples, sample_entropy
from discrete_distill.recipes.common.run import Run
from discrete_distill.recipes.text.run import text_run
from discrete_distill.recipes.text.settings import demo

SEED = 0


def replaced(text_L: Tensor, others_NL: Tensor, share: float, generator: Generator) -> Tensor:
    """Copies of one text, a share of whose tokens are those of other texts."""
    chosen = torch.rand(others_NL.shape, generator=generator) < share
    return torch.where(chosen, others_NL, text_L)


def sample_sets(run: Run, data: Tensor, count: int, steps: int) -> dict[str, Tensor]:
    """Sets of ``count`` samples, by name; the first is data, the second the reference of the others."""
    generator = Generator().manual_seed(SEED)
    order = torch.randperm(len(data), generator=generator)
    text, chosen = data[order[0]], data[order[:count]]
    teacher, process = run.load_teacher(), MaskedDiffusion(run.tokenizer.mask_token_id)

    def teacher_samples(temperature: float) -> Tensor:
        sampler = AncestralSampler(process, num_steps=steps, temperature=temperature)
        return sampler(teacher, (count, data.shape[1]), generator=Generator().manual_seed(SEED)).sequences

    sets = {"held-out text": chosen, f"teacher, {steps} steps": teacher_samples(1.0)}
    sets[f"teacher, {steps} steps, temperature 0.9"] = teacher_samples(0.9)
    for share in (0.3, 0.5, 0.7):
        sets[f"one text, {share:.0%} of its tokens replaced"] = replaced(text, chosen, share, generator)
    for number in (2, 12, 48):
        sets[f"{number} texts, repeated"] = data[order[torch.arange(count) % number]]
    return sets


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--steps", type=int, default=32)
    options = parser.parse_args(arguments)
    config = demo()
    config.precision = "fp32"
    run = text_run(config, "python -m benchmarks.collapse")
    heldout = run.streams["heldout"].packed(2048)
    data, reference = heldout[0::2], heldout[1::2]
    sets = sample_sets(run, data, options.samples, options.steps)
    measured = {name: measure_between_samples(samples, reference).figures() for name, samples in sets.items()}
    of_teacher = measured[f"teacher, {options.steps} steps"]
    rows: dict[str, Any] = {}
    print(
        "| samples | entropy | two samples agree | nearest 4-gram overlap | 3-gram entropy | log reverse perplexity | |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, figures in measured.items():
        lost = [each.name for each in lost_diversity(figures, of_teacher)]
        entropy = float(sample_entropy(sets[name]).mean())
        rows[name] = {"entropy": entropy, "figures": figures, "lost": lost}
        cells = [f"{figures[key].value:.4g} ± {figures[key].standard_error:.2g}" for key in SHOWN]
        print(f"| {name} | {entropy:.3f} | {' | '.join(cells)} | {'collapsed' if lost else ''} |")
    about = {
        "command": f"python -m benchmarks.collapse --samples {options.samples} --steps {options.steps}",
        "seed": SEED,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "reference sequences": len(reference),
    }
    write_json(options.output / "collapse.json", {**about, "rows": rows})


SHOWN = ("agreement", "nearest_overlap", "entropy_3", "reverse_nats")

if __name__ == "__main__":
    main()
