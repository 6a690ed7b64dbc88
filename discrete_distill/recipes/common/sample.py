"""The sampling stage: text in the terminal, all at once or as it resolves."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text
from torch import Generator, Tensor

from ...checks import check_count, check_number
from ...process import MaskedDiffusion
from ...samplers import Sampler, SamplerOutput, prompted
from ...training import fold_seed
from .plain_sampler import plain_sampler
from .printing import printable
from .run import Run
from .tokenizer import TextTokenizer


@dataclass(kw_only=True)
class SampleConfig:
    """What is drawn.

    Args:
        count: sequences.
        steps: student evaluations for each.
        temperature: of the tokens.
        prompt: text that every sequence starts with.
        guided: re-rank with the discriminator (RGAS), as ``--evaluate.*`` has it.
        watch: show the text resolving, step by step.
        seconds_per_step: how long each state stays while watching.
    """

    count: int = 4
    steps: int = 8
    temperature: float = 1.0
    prompt: str = ""
    guided: bool = False
    watch: bool = False
    seconds_per_step: float = 0.5

    def __post_init__(self) -> None:
        check_count("--sample.count", self.count)
        check_count("--sample.steps", self.steps)
        check_number("--sample.temperature", self.temperature, exclusive_minimum=0.0)
        check_number("--sample.seconds-per-step", self.seconds_per_step, minimum=0.0)


def show_samples(run: Run, config: SampleConfig) -> SamplerOutput | None:
    """Draw samples of the student, and print them.

    Returns:
        The samples, or None for a process other than the first.
    """
    if not run.accelerator.is_main_process:
        return None
    student, discriminator = run.load_student()
    run.compile(student)
    if config.guided and discriminator is None:
        raise ValueError("guided sampling needs a discriminator, and this student has none; leave --sample.guided out")
    process, tokenizer, length = run.process, run.tokenizer, run.config.data.length
    ids = [*tokenizer.prefix, *(tokenizer.encode([config.prompt])[0] if config.prompt else [])]
    if len(ids) + len(tokenizer.suffix) >= length:
        raise ValueError(f"the prompt has {len(ids)} tokens and a sequence {length}; shorten the prompt")
    x_init = prompted([ids] * config.count, length, process.mask_token_id, suffixes=[tokenizer.suffix] * config.count)[
        0
    ].to(run.accelerator.device)
    generator = Generator(device=run.accelerator.device).manual_seed(fold_seed("sample", run.config.seed))
    sampler: Sampler
    if config.guided:
        assert discriminator is not None
        sampler = run.config.evaluate.guided_sampler(process, discriminator, config.steps, config.temperature)
    else:
        sampler = plain_sampler(process, student, length, num_steps=config.steps, temperature=config.temperature)
    with run.accelerator.autocast():
        out = sampler(student, x_init=x_init, generator=generator, return_history=True)
    console = Console()
    if config.watch and out.history is not None:
        _show_history(out.history, process, tokenizer, console, config.seconds_per_step)
    else:
        for row in out.sequences.tolist():
            text = Text(printable(tokenizer.decode(row).strip()))  # Not read as markup.
            console.print(Panel(text, width=min(100, console.width)))
    console.print(f"{config.steps} steps, {out.network_evaluations} network evaluations", style="dim")
    return out


def _show_history(
    history: list[Tensor], process: MaskedDiffusion, tokenizer: TextTokenizer, console: Console, pause: float
) -> None:
    import time

    with Live(console=console, refresh_per_second=20) as live:
        for step, state in enumerate(history):
            live.update(_frame(state, history[max(step - 1, 0)], process, tokenizer, step, len(history) - 1))
            time.sleep(pause)


def _frame(
    state: Tensor, before: Tensor, process: MaskedDiffusion, tokenizer: TextTokenizer, step: int, last: int
) -> Panel:
    """The first sequences of a state: masks dim, what this step revealed bright."""
    text = Text()
    for row, row_before in zip(state[:4].tolist(), before[:4].tolist(), strict=True):
        for token, old in zip(row, row_before, strict=True):
            if token == process.mask_token_id:
                text.append("·", style="dim")
            else:
                text.append(printable(tokenizer.decode([token])), style="bold green" if old != token else "")
        text.append("\n\n")
    return Panel(text, title=f"step {step} of {last}")
