"""The stage "sample": puzzles solved in the terminal, all at once or as they are filled in."""

from __future__ import annotations

import time

import torch
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text
from torch import Generator, Tensor

from ...evaluation.tasks import Prompts
from ...process import evaluation_mode
from ...samplers import SamplerOutput
from ...training import fold_seed
from ..common.plain_sampler import plain_sampler
from .run import TaskRun
from .settings import SolveConfig

SIDE_BY_SIDE = 4


def check_puzzles(run: TaskRun, config: SolveConfig) -> None:
    """Refuse puzzles that cannot be read or contradict themselves, and a network that is not there."""
    run.named.puzzles(config.puzzles)
    if config.method == "teacher":
        run.load_teacher()
    else:
        run.load_student(run.directory / config.method / "student")


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
    teacher = config.method == "teacher"
    network = run.load_teacher() if teacher else run.load_student(run.directory / config.method / "student")[0]
    sampler = plain_sampler(
        run.process,
        network,
        run.named.length,
        num_steps=config.forwards,
        by_confidence=config.decoding == "confidence",
    )
    with torch.no_grad(), evaluation_mode(network), run.accelerator.autocast():
        out = sampler(
            network,
            x_init=placed.x_init,
            generation_mask=placed.generation_mask,
            generator=generator,
            return_history=True,
        )
    right = task.verify(out.sequences.cpu(), prompts).tolist()
    history = [state[:SIDE_BY_SIDE].cpu() for state in out.history or []]
    console = Console()
    if config.watch:
        with Live(console=console, refresh_per_second=20) as live:
            for step, state in enumerate(history):
                live.update(frame(run, state, history[max(step - 1, 0)], f"evaluation {step} of {len(history) - 1}"))
                time.sleep(config.seconds_per_step)
    else:
        console.print(frame(run, out.sequences.cpu(), prompts.x_init, config.method))
    console.print(f"{sum(right)} of {len(right)} right, {out.nfe} evaluations of the network", style="dim")
    return out


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
