"""The sampling stage: text in the terminal, all at once or as it resolves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from torch import Generator, Tensor, nn

from ...checks import check_count, check_number
from ...files import read_json_object
from ...process import MaskedDiffusion
from ...samplers import Sampler, SamplerOutput, prompted
from ...training import fold_seed
from .distill import SETTINGS_FILE
from .network_shape import network_shape
from .plain_sampler import plain_sampler
from .printing import printable
from .run import Run
from .tokenizer import TextTokenizer
from .watch import watch


@dataclass(kw_only=True)
class SampleConfig:
    """What is drawn.

    Args:
        count: sequences.
        steps: student evaluations for each.
        temperature: of the tokens.
        prompt: text that every sequence starts with.
        teacher: draw from the teacher, in the place of the student.
        guided: re-rank with the discriminator (RGAS), as ``--evaluate.*`` has it.
        watch: show the text resolving, step by step, or block by block where the network reads so.
        seconds_per_step: how long each state stays while watching.
    """

    count: int = 4
    steps: int = 8
    temperature: float = 1.0
    prompt: str = ""
    teacher: bool = False
    guided: bool = False
    watch: bool = False
    seconds_per_step: float = 0.5

    def __post_init__(self) -> None:
        check_count("--sample.count", self.count)
        check_count("--sample.steps", self.steps)
        check_number("--sample.temperature", self.temperature, exclusive_minimum=0.0)
        check_number("--sample.seconds-per-step", self.seconds_per_step, minimum=0.0)


def show_samples(run: Run, config: SampleConfig) -> SamplerOutput | None:
    """Draw samples of the student or the teacher, and print them.

    Returns:
        The samples, or None for a process other than the first.
    """
    if not run.accelerator.is_main_process:
        return None
    network, discriminator = (run.load_teacher(), None) if config.teacher else run.load_student()
    run.compile(network)
    if config.guided and discriminator is None:
        raise ValueError("guided sampling needs a discriminator, and this network has none; leave --sample.guided out")
    order = "random" if config.teacher else run.student_order
    process, tokenizer, length = run.process, run.tokenizer, sample_length(run, network)
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
        sampler = run.config.evaluate.guided_sampler(process, discriminator, config.steps, config.temperature, order)
    else:
        sampler = plain_sampler(
            process,
            network,
            length,
            num_steps=config.steps,
            num_given=len(ids),
            temperature=config.temperature,
            order=order,
        )
    console = Console()
    with run.accelerator.autocast():
        if config.watch:
            frame = partial(_frame, process, tokenizer)
            pause = config.seconds_per_step
            out = watch(sampler, network, x_init, frame=frame, console=console, pause=pause, generator=generator)
        else:
            out = sampler(network, x_init=x_init, generator=generator)
    if not config.watch:
        for row in out.sequences.tolist():
            text = Text(printable(tokenizer.decode(row).strip()))  # Not read as markup.
            console.print(Panel(text, width=min(100, console.width)))
    console.print(f"{length} tokens, {config.steps} steps, {out.network_evaluations} network evaluations", style="dim")
    return out


def sample_length(run: Run, network: nn.Module) -> int:
    """Tokens of a sample: ``--data.length``, or, of a network that does not read as many, those that it was distilled
    with."""
    length, longest = run.config.data.length, network_shape(network).max_length
    if longest is None or length <= longest:
        return length
    file = run.directory / "student" / SETTINGS_FILE
    noted = read_json_object(file).get("text.length") if file.exists() else None
    return min(noted, longest) if isinstance(noted, int) else longest


def _frame(process: MaskedDiffusion, tokenizer: TextTokenizer, state: Tensor, before: Tensor, title: str) -> Panel:
    """The first sequences of a state: masks dim, what is new since the state before bright."""
    text = Text()
    for row, row_before in zip(state[:4].tolist(), before[:4].tolist(), strict=True):
        for token, old in zip(row, row_before, strict=True):
            if token == process.mask_token_id:
                text.append("·", style="dim")
            else:
                text.append(printable(tokenizer.decode([token])), style="bold green" if old != token else "")
        text.append("\n\n")
    return Panel(text, title=title)
