"""The evaluation stage: every network by every decoding on the same prompts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Generator

from ...evaluation.tasks import Prompts, Task, accuracy_under_parallelism, measure_task
from ...process import evaluation_mode
from ...training import fold_seed
from ..common.plain_sampler import blocks_to_draw
from .decoding import Decoded, Decoding, decode, decodings
from .run import TaskRun
from .settings import MeasureConfig

Line = dict[str, Any]
RESULTS: dict[str, type] = {
    "task": str, "size": int, "length": int, "num_prompts": int, "lines": list, "aup": list, "shown": dict,
    "parameters": int, "seconds": float, "training": dict, "budget": str, "amount": float,
}  # fmt: skip


def prompt_sets(run: TaskRun, config: MeasureConfig) -> dict[str, Task]:
    """What is solved, by the name of the prompts."""
    named = run.named
    if named.name in ("countdown", "arithmetic"):
        return {"questions": named.task}
    if not config.num_clues or named.name != "sudoku":
        return {"empty": named.task}
    return {"empty": named.task, f"{config.num_clues} clues": named.with_clues(config.num_clues)}


def evaluate(run: TaskRun, config: MeasureConfig, networks: Mapping[str, Any]) -> dict[str, Any]:
    """Measure networks.

    Args:
        run: of the recipe.
        config: what is measured.
        networks: denoisers by name; the teacher is the first.

    Returns:
        What the stage writes.
    """
    started = time.perf_counter()
    named = run.named
    blocks = blocks_to_draw(networks["teacher"], named.length, num_given=named.num_given)
    todo = [
        (network, prompts, task, decoding)
        for network in networks
        for prompts, task in prompt_sets(run, config).items()
        for decoding in decodings(run.process, config, named.answer_length, blocks)
    ]
    lines = []
    with run.clock.bar(total=len(todo), desc="evaluate", disable=not run.accelerator.is_main_process) as bar:
        for network, prompts, task, decoding in todo:
            figures = _line(run, config, networks[network], task, decoding)
            lines.append({"network": network, "prompts": prompts, **figures})
            bar.update()
    return {
        "task": named.name,
        "size": named.size,
        "length": named.answer_length,
        "num_prompts": config.num_prompts,
        "lines": lines,
        "aup": areas(lines),
        "shown": {name: _shown(run, config, network) for name, network in networks.items()},
        "parameters": sum(parameter.numel() for parameter in networks["teacher"].parameters()),
        "seconds": time.perf_counter() - started,
    }


def _line(run: TaskRun, config: MeasureConfig, network: Any, task: Task, decoding: Decoding) -> Line:
    """Figures of one network by one decoding; prompts and draws are the same for all."""

    def sample(prompts: Prompts, generator: Generator | None) -> Decoded:
        placed = Prompts(*(each.to(run.accelerator.device) for each in prompts))
        with evaluation_mode(network), run.accelerator.autocast():
            return decode(decoding, network, placed, generator)

    figures = measure_task(
        task,
        sample,
        num_prompts=config.num_prompts,
        batch_size=config.batch_size,
        generator=Generator().manual_seed(fold_seed("prompts", run.config.seed)),
    )
    coverage = figures.coverage
    return {
        "decoding": decoding.name,
        "setting": decoding.setting,
        "tokens_per_forward": figures.tokens_per_forward,
        "accuracy": asdict(figures.accuracy),
        "coverage": None if coverage is None else {**asdict(coverage), "excess_kl": coverage.excess_kl},
    }


def areas(lines: list[Line]) -> list[dict[str, Any]]:
    """Accuracy under parallelism of each network by each decoding, against the best accuracy of all on the prompts."""
    curves: dict[tuple[str, str, str], dict[float, list[float]]] = {}
    best: dict[str, float] = {}
    for line in lines:
        key, value = (line["network"], line["prompts"], line["decoding"]), line["accuracy"]["value"]
        curves.setdefault(key, {}).setdefault(round(line["tokens_per_forward"], 6), []).append(value)
        best[line["prompts"]] = max(value, best.get(line["prompts"], 0.0))
    found = []
    for (network, prompts, decoding), points in curves.items():
        means = [sum(values) / len(values) for values in points.values()]
        area = accuracy_under_parallelism(list(points), means, best_accuracy=best[prompts]) if best[prompts] else 0.0
        found.append({"network": network, "prompts": prompts, "decoding": decoding, "aup": area})
    return found


def _shown(run: TaskRun, config: MeasureConfig, network: Any) -> list[dict[str, Any]]:
    """Answers in the most steps that are at most half as many as tokens, and whether each is right."""
    named, length = run.named, run.named.answer_length
    every = decodings(run.process, config, length, blocks_to_draw(network, named.length, num_given=named.num_given))
    fast = [each for each in every if each.num_steps and each.num_steps <= length // 2]
    if not fast or not config.shown:
        return []
    chosen = max(fast, key=lambda each: each.num_steps or 0)
    generator = Generator().manual_seed(fold_seed("shown", run.config.seed))
    task = run.named.task
    prompts = task.sample_prompts(config.shown, generator)
    placed = Prompts(*(each.to(run.accelerator.device) for each in prompts))
    with torch.no_grad(), evaluation_mode(network):
        sequences = decode(chosen, network, placed, generator).sequences.cpu()
    right = task.verify(sequences, prompts).tolist()
    how = f"{chosen.name}, {chosen.setting}"
    return [{"text": task.render(row), "right": each, "how": how} for row, each in zip(sequences, right, strict=True)]
