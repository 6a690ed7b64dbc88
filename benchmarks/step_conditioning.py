"""Where and how fast the step enters a student without a way of its own: `python -m benchmarks.step_conditioning`.

On a language of which everything is known, students with paths of 2, 4 and 8 steps are distilled from a perfect
teacher; only the way in which ``(t, s)`` enters the student differs. The student is a BERT of transformers, or the
library's DiT with its own way, for comparison; the auxiliary is that DiT. Prints the distance that is left, in nats;
writes CSV and JSON.
"""

from __future__ import annotations

import argparse
import copy
import csv
import importlib.metadata
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.exact import PATHS
from benchmarks.gpu_run import write_json
from benchmarks.laboratory import Laboratory, LookUpDenoiser, Training, distil, make_dit, score
from discrete_distill import exact
from discrete_distill.distillation.methods import DiDiInstructConfig, Regularization
from discrete_distill.models import StepConditioned, as_denoiser
from discrete_distill.models.layers import TimestepEmbedder, zero_initialised

STEPS = (2, 4, 8)


class StepInBlocks(nn.Module):
    """A denoiser with an embedding of the step added to the input of each of its blocks."""

    accepts_step = time_conditioned = True

    def __init__(self, denoiser: Any, speed: float) -> None:
        super().__init__()
        self.denoiser, self.blocks = denoiser, list(denoiser.blocks)
        weight_VD = denoiser.embedding_weight().detach()
        self.width = weight_VD.shape[1]
        self.step_map = zero_initialised(TimestepEmbedder(self.width * len(self.blocks), num_scalars=2))
        self.scale = speed * float(weight_VD.square().mean().sqrt())

    def __deepcopy__(self, memo: dict[int, Any]) -> StepInBlocks:
        made = type(self)(copy.deepcopy(self.denoiser, memo), 1.0)
        made.step_map, made.scale = copy.deepcopy(self.step_map, memo), self.scale
        return made

    def forward(self, x_t: Tensor, t: Tensor, *, s: Tensor | None = None) -> Tensor:
        if s is None:
            return self.denoiser(x_t, t)
        added = (self.scale * self.step_map(1000.0 * t, 1000.0 * s)).view(len(t), -1, 1, self.width).unbind(1)
        hooks = [
            block.register_forward_pre_hook(lambda module, inputs, more=more: (inputs[0] + more, *inputs[1:]))
            for block, more in zip(self.blocks, added, strict=True)
        ]
        try:
            return self.denoiser(x_t, t)
        finally:
            for hook in hooks:
                hook.remove()


def make_bert(laboratory: Laboratory, *, step_conditioning: bool, where: str, speed: float) -> nn.Module:
    """A small BERT whose first logits are zero, passed its step in one way."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=laboratory.chain.vocab_size + 1,
        hidden_size=laboratory.hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=4 * laboratory.hidden_size,
        max_position_embeddings=laboratory.length,
        tie_word_embeddings=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.BertForMaskedLM(config).eval()
    nn.init.zeros_(model.cls.predictions.decoder.weight)
    denoiser: Any = as_denoiser(model, verify=False)
    if not step_conditioning or where == "none":
        return denoiser
    if where == "blocks":
        return StepInBlocks(denoiser, speed)
    made = StepConditioned(denoiser)
    made.scale.mul_(speed)
    return made


WAYS: dict[str, Callable[..., nn.Module]] = {
    "none": partial(make_bert, where="none", speed=1.0),
    "input": partial(make_bert, where="input", speed=1.0),
    "input, a tenth": partial(make_bert, where="input", speed=0.1),
    "blocks": partial(make_bert, where="blocks", speed=1.0),
    "blocks, a tenth": partial(make_bert, where="blocks", speed=0.1),
    "DiT, none": lambda laboratory, step_conditioning: make_dit(laboratory, step_conditioning=False),
    "DiT, its own": make_dit,
}


def measure(way: str, seed: int, training: Training) -> list[dict[str, Any]]:
    """One student's distances."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    laboratory = Laboratory(*exact.small_chain())
    teacher = LookUpDenoiser(laboratory)
    paths = {"num_steps": PATHS, "step_conditioning": not way.endswith("none")}
    config = DiDiInstructConfig.recommended(paths=paths, regularization=Regularization())
    student = distil(laboratory, teacher, config, training, seed=seed, network=WAYS[way])
    seconds = time.perf_counter() - started
    return [
        {"way": way, "seed": seed, "steps": each.steps, "reverse_kl": each.reverse_kl, "forward_kl": each.forward_kl,
         "entropy": each.entropy, "seconds": seconds}
        for each in score(laboratory, student, STEPS)
    ]  # fmt: skip


def summarise(rows: list[dict[str, Any]]) -> list[str]:
    """A table: reverse KL by way and number of steps, mean over seeds with the spread."""
    lines = [f"{'the step enters':18}" + "".join(f"{steps:>4} steps         " for steps in STEPS)]
    for way in dict.fromkeys(row["way"] for row in rows):
        cells = []
        for steps in STEPS:
            found = [row["reverse_kl"] for row in rows if (row["way"], row["steps"]) == (way, steps)]
            spread = f" ± {statistics.stdev(found):.4f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.4f}{spread}".ljust(19))
        lines.append(f"{way:18}" + "".join(cells))
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write after every student."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS))
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--batch", type=int, default=768)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args(arguments)
    training = Training(updates=options.updates, batch=options.batch)
    about = {
        "command": f"python -m benchmarks.step_conditioning --seeds {' '.join(map(str, options.seeds))} "
        f"--updates {options.updates} --batch {options.batch}",
        "machine": f"{platform.machine()} CPU, {options.workers} processes of one thread, fp32, distributions in fp64",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
    }
    rows: list[dict[str, Any]] = []
    options.output.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(measure, way, seed, training) for seed in options.seeds for way in options.ways]
        for future in waiting:
            rows += future.result()
            with (options.output / "step-conditioning.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fieldnames=list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            write_json(options.output / "step-conditioning.json", about)
            print("\n".join(["", *summarise(rows)]), flush=True)


if __name__ == "__main__":
    main()
