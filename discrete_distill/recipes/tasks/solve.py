"""The stage "sample": puzzles solved in the terminal, all at once or as they are filled in."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from torch import Generator, Tensor

from ...evaluation.tasks import Prompts
from ...process import evaluation_mode
from ...samplers import SamplerOutput
from ...training import fold_seed
from ..common.methods import MethodsConfig
from ..common.plain_sampler import plain_sampler
from ..common.watch import watch
from .run import TaskRun
from .settings import SolveConfig

SIDE_BY_SIDE = 4


def check_puzzles(run: TaskRun, config: SolveConfig) -> None:
    """Refuse puzzles that cannot be read or contradict themselves, and a network that is not there."""
    run.named.puzzles(config.puzzles)
    load_solver(run, config)


def load_solver(run: TaskRun, config: SolveConfig) -> tuple[str, Any]:
    """The network of ``--sample.method``, and whose it is."""
    if config.method == "teacher":
        return config.method, run.load_teacher()
    recipe: Any = run.config
    folders = {name: run.directory / name / "student" for name in (*recipe.methods, *MethodsConfig.KNOWN)}
    trained = [name for name, folder in folders.items() if (folder / "config.json").exists()]
    chosen = config.method or next(iter(trained or folders))
    return chosen, run.load_student(run.directory / chosen / "student")[0]


def solve(run: TaskRun, config: SolveConfig) -> SamplerOutput | None:
    """Solve puzzles, and print them.

    Returns:
        The samples, or None for a process other than the first.
    """
    if not run.accelerator.is_main_process:
        return None
    generator = Generator().manual_seed(fold_seed("sample", run.config.seed))
    task = run.named.task
    prompts = run.named.puzzles(config.puzzles) if config.puzzles else task.sample_prompts(config.count, generator)
    placed = Prompts(*(each.to(run.accelerator.device) for each in prompts))
    method, network = load_solver(run, config)
    sampler = plain_sampler(
        run.process,
        network,
        run.named.length,
        num_steps=config.forwards,
        num_given=run.named.num_given,
        order="strided" if config.decoding == "strided" else "random",
        by_confidence=config.decoding == "confidence",
    )
    console = Console()
    given: Any = {"generation_mask": placed.generation_mask, "generator": generator}
    with torch.no_grad(), evaluation_mode(network), run.accelerator.autocast():
        if config.watch:
            pause, few = config.seconds_per_step, partial(_few, run)
            out = watch(sampler, network, placed.x_init, frame=few, console=console, pause=pause, **given)
        else:
            out = sampler(network, x_init=placed.x_init, **given)
            console.print(frame(run, out.sequences.cpu(), prompts.x_init, method))
    right = task.verify(out.sequences.cpu(), prompts).tolist()
    console.print(f"{sum(right)} of {len(right)} right, {out.nfe} evaluations of the network", style="dim")
    return out


def _few(run: TaskRun, state: Tensor, before: Tensor, title: str) -> Panel:
    return frame(run, state[:SIDE_BY_SIDE].cpu(), before[:SIDE_BY_SIDE].cpu(), title)


def frame(run: TaskRun, state: Tensor, before: Tensor, title: str) -> Panel:
    """Sequences as the task renders them, with what is new since ``before`` in bold."""
    boards = []
    for row, old in zip(state, before, strict=True):
        text, new = run.named.task.render(row), run.named.task.render(old)
        board = Text()
        for character, earlier in zip(text, new, strict=True):
            board.append("·" if character == "_" else character, style="bold green" if character != earlier else "")
        boards.append(board)
    return Panel(Columns(boards, padding=(0, 4)), title=title, expand=False)
