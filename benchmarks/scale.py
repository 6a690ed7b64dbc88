"""What a run needs at four sizes: memory, traffic, time, money. ``python -m benchmarks.scale`` writes the page
docs/benchmarks/scale.md.

Parameters are counted on the networks themselves, on PyTorch's meta device; the rest is arithmetic on stated
assumptions.
"""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from discrete_distill.models import Discriminator, DiT, DiTConfig
from discrete_distill.models.dit import Block

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "scale.md"
GB = 1e9
SHAPES = {
    "169M": {"hidden_size": 768, "num_layers": 12, "num_heads": 12},
    "424M": {"hidden_size": 1024, "num_layers": 24, "num_heads": 16},
    "1B": {"hidden_size": 1536, "num_layers": 28, "num_heads": 12},
    "8B": {"hidden_size": 4096, "num_layers": 36, "num_heads": 32},
}


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Of the tables. Bandwidths are bytes per second that one GPU receives, of the whole machine and between
    machines."""

    length: int = 1024
    paths: int = 16
    path_steps: int = 2
    steps: int = 10_000
    peak_flops: float = 989e12
    utilisation: float = 0.35
    gpu_memory: float = 80e9
    usable: float = 0.9
    bandwidth_inside: float = 300e9
    bandwidth_between: float = 40e9
    gpus_inside: int = 8
    dollars_per_gpu_hour: float = 2.5


@dataclass(frozen=True)
class Counts:
    """Of one size: parameters of the networks and of their parts, and elements that a block keeps for a token."""

    config: DiTConfig
    denoiser: int
    block: int
    discriminator: int
    discriminator_trained: int
    kept_per_token: int


def count(name: str, length: int) -> Counts:
    """Built on the meta device: shapes without memory."""
    config = DiTConfig(vocab_size=50258, max_length=length, dropout=0.0, **SHAPES[name])
    with torch.device("meta"):
        denoiser, discriminator = DiT(config), Discriminator(config)
    weights = list(discriminator.parameters())
    return Counts(
        config=config,
        denoiser=sum(weight.numel() for weight in denoiser.parameters()),
        block=sum(weight.numel() for weight in denoiser.blocks[0].parameters()),
        discriminator=sum(weight.numel() for weight in weights),
        discriminator_trained=sum(weight.numel() for weight in weights if weight.requires_grad),
        kept_per_token=kept_elements(config),
    )


def kept_elements(config: DiTConfig, tokens: int = 32) -> int:
    """Elements that autograd keeps of one block for one token, parameters and attention weights not counted: fused
    attention does not keep those. Counted on a block of 256, as they are proportional to the width."""
    width, config = config.hidden_size, replace(config, hidden_size=256, num_heads=4)
    block = Block(config)
    own = {weight.data_ptr() for weight in block.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own and tensor.shape[-2:] != (tokens, tokens):
            kept[pointer] = max(kept.get(pointer, 0), tensor.numel())
        return tensor

    half = config.hidden_size // config.num_heads // 2
    rotary = torch.zeros(tokens, half), torch.zeros(tokens, half)
    alive = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: alive.append(t) or note(t), lambda t: t):
        block(torch.randn(1, tokens, config.hidden_size, requires_grad=True), torch.randn(1, 128), rotary, None)
    return sum(kept.values()) * width // (tokens * config.hidden_size)


def states(counts: Counts) -> dict[str, float]:
    """Bytes that stay: fp32 weights, gradients, two moments, and a moving average of the student."""
    trained, frozen = counts.discriminator_trained, counts.discriminator - counts.discriminator_trained
    return {
        "student and average": 20.0 * counts.denoiser,
        "teacher": 4.0 * counts.denoiser,
        "auxiliary": 16.0 * counts.denoiser,
        "discriminator": 16.0 * trained + 4.0 * frozen,
    }


def activations(counts: Counts, a: Assumptions, *, checkpointed: bool) -> float:
    """Bytes of the student's graph, bf16: the all-mask state is one row, the others a row for each path."""
    tokens = a.length * (1 + (a.path_steps - 1) * a.paths)
    kept = counts.config.hidden_size if checkpointed else counts.kept_per_token
    again = 2.0 * counts.kept_per_token * a.length * a.paths if checkpointed else 0.0
    logits = 2.0 * 2.0 * a.paths * a.length * counts.config.vocab_size
    return 2.0 * tokens * kept * counts.config.num_layers + again + logits


def sharded(counts: Counts, ratio: str, gpus: int) -> float:
    """Bytes of states on one GPU under FSDP2, and of two gathered groups: the largest is the block or what is left."""
    parts = states(counts)
    total = parts["student and average"] + parts["teacher"] + parts[ratio]
    rest = counts.denoiser - counts.config.num_layers * counts.block
    return total / gpus + 2.0 * max(2.0 * counts.block, 4.0 * rest)


def flops(counts: Counts, a: Assumptions) -> float:
    """Of one published step on one GPU: student forward and backward, teacher, discriminator twice on student and
    reference and once for the reward, all through the blocks; the head where tokens are revealed."""
    config = counts.config
    row = a.length * config.num_layers * (2.0 * counts.block + 4.0 * a.length * config.hidden_size)
    head = 2.0 * a.paths * a.length * config.hidden_size * config.vocab_size
    rows = 1 + (a.path_steps - 1) * a.paths
    trained = 4 / config.num_layers
    student, teacher = 3.0 * (rows * row + head), rows * row + head
    discriminator = row * a.paths * (2.0 * (1.0 + 2.0 * trained) + 1.0)
    return student + teacher + discriminator


def gathered(counts: Counts) -> float:
    """Bytes of a network's weights as FSDP2 hands them out: blocks in bf16, embedding and head in fp32."""
    blocks = counts.config.num_layers * counts.block
    return 2.0 * blocks + 4.0 * (counts.denoiser - blocks)


def traffic(counts: Counts, a: Assumptions, gpus: int, strategy: str) -> float:
    """Bytes that one GPU receives in a published step: DDP exchanges gradients in fp32, FSDP2 gathers weights for
    every forward and backward pass through a network and scatters gradients in fp32."""
    share = (gpus - 1) / gpus
    trained = counts.denoiser + counts.discriminator_trained
    if strategy == "DDP":
        return 2.0 * share * 4.0 * trained
    # Student forward and backward, teacher forward, for each state of the path; discriminator three times and two back.
    gathers = (2.0 + 1.0) * a.path_steps + 3.0 + 2.0
    scattered = a.path_steps * counts.denoiser + 2.0 * counts.discriminator_trained
    return share * (gathers * gathered(counts) + 4.0 * scattered)


@dataclass(frozen=True)
class Plan:
    """How a size is run on a number of GPUs, and what that takes."""

    strategy: str
    memory: float
    seconds: float
    hours: float
    dollars: float
    bytes_moved: float


def plan(counts: Counts, a: Assumptions, gpus: int) -> Plan:
    """DDP where it fits, else FSDP2, else FSDP2 with activation checkpointing; exchange overlaps with arithmetic."""
    parts = states(counts)
    whole = parts["student and average"] + parts["teacher"] + parts["discriminator"]
    graph = activations(counts, a, checkpointed=False)
    short = activations(counts, a, checkpointed=True)
    split = sharded(counts, "discriminator", gpus)
    options = [("DDP", whole + graph), ("FSDP2", split + graph), ("FSDP2, checkpointed", split + short)]
    fitting = [option for option in options if option[1] <= a.usable * a.gpu_memory] or [options[-1]]
    strategy, memory = fitting[0]
    again = 4.0 / 3.0 if "checkpointed" in strategy else 1.0
    moved = traffic(counts, a, gpus, strategy.split(",")[0])
    bandwidth = a.bandwidth_inside if gpus <= a.gpus_inside else a.bandwidth_between
    seconds = max(again * flops(counts, a) / (a.peak_flops * a.utilisation), moved / bandwidth)
    hours = seconds * a.steps / 3600.0
    fits = "" if memory <= a.usable * a.gpu_memory else " (does not fit)"
    return Plan(strategy + fits, memory, seconds, hours, hours * gpus * a.dollars_per_gpu_hour, moved)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def render(a: Assumptions) -> str:
    """The page."""
    sizes = {name: count(name, a.length) for name in SHAPES}
    gb = lambda value: f"{value / GB:.1f}"  # noqa: E731
    parameters = [
        [
            name,
            f"{c.config.hidden_size} x {c.config.num_layers}",
            f"{c.denoiser / 1e6:.1f} M",
            f"{c.discriminator / 1e6:.1f} M ({c.discriminator_trained / 1e6:.1f} M)",
            *map(gb, states(c).values()),
        ]
        for name, c in sizes.items()
    ]
    graphs = [
        [
            name,
            str(c.kept_per_token),
            *(gb(activations(c, a, checkpointed=flag)) for flag in (False, True)),
            gb(4.0 * a.paths * a.length * c.config.vocab_size),
        ]
        for name, c in sizes.items()
    ]
    shares = [
        [name, *(gb(sharded(c, ratio, n)) for n in (8, 64) for ratio in ("discriminator", "auxiliary"))]
        for name, c in sizes.items()
    ]
    moved = [
        [name, f"{flops(c, a) / 1e12:.0f}", *(gb(traffic(c, a, n, s)) for n in (8, 64) for s in ("DDP", "FSDP2"))]
        for name, c in sizes.items()
    ]
    runs = []
    for name, c in sizes.items():
        for gpus in (8, 64):
            p = plan(c, a, gpus)
            line = [name, str(gpus), p.strategy, f"{p.memory / GB:.0f}", f"{p.seconds:.2f}", f"{p.hours:.1f}"]
            runs.append([*line, f"{p.hours * gpus:.0f}", f"{p.dollars:.0f}", f"{a.paths * gpus * a.steps / 1e6:.1f} M"])
    page = TEMPLATE.format(
        a=a,
        tokens=a.paths * a.length,
        peak=a.peak_flops / 1e12,
        memory=a.gpu_memory / GB,
        inside=a.bandwidth_inside / GB,
        between=a.bandwidth_between / GB,
        parameters=table(
            ["", "width x blocks", "denoiser", "discriminator (trained)", *states(sizes["169M"])], parameters
        ),
        graphs=table(["", "elements per token and block", "graph", "graph, checkpointed", "of it logits"], graphs),
        shares=table(
            ["", "8 GPUs, discriminator", "8 GPUs, auxiliary", "64 GPUs, discriminator", "64 GPUs, auxiliary"], shares
        ),
        moved=table(["", "TFLOP", "8, DDP", "8, FSDP2", "64, DDP", "64, FSDP2"], moved),
        runs=table(["", "GPUs", "layout", "GB per GPU", "s per step", "hours", "GPU hours", "dollars", "paths"], runs),
    )

    return reflow(page)


def reflow(page: str) -> str:
    """Paragraphs and bullets filled to the width of the other pages; headings and tables as they are."""
    blocks = []
    for block in page.strip().split("\n\n"):
        head, *rest = block.split("\n")
        if head.startswith("#"):
            blocks.append("\n".join([head, *(reflow("\n".join(rest)).splitlines() if rest else [])]))
        elif head.startswith("|"):
            blocks.append(block)
        else:
            items = [" ".join(item.split()) for item in f"\n{block}".split("\n- ")] if head.startswith("- ") else None
            filled = [_fill(f"- {item}", "  ") for item in items[1:]] if items else [_fill(" ".join(block.split()), "")]
            blocks.append("\n".join(filled))
    return "\n\n".join(blocks) + "\n"


def _fill(text: str, indent: str) -> str:
    return textwrap.fill(text, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


TEMPLATE = """\
# Scale

What a run of the published method needs at four sizes. This page is written by `python -m benchmarks.scale`:
parameters are
counted on the networks themselves (PyTorch's meta device), the rest is arithmetic on the assumptions below. Nothing
here was
timed; the flags of the script change every assumption. How to launch is in [Many GPUs](../how-to/many-gpus.md).

## Assumptions
- Vocabulary 50 258, length {a.length}, {a.paths} student paths per GPU and step, each of {a.path_steps} steps:
  {tokens} tokens
  per GPU and step. {a.steps} steps.
- fp32 weights, gradients and Adam's moments (4 + 4 + 8 bytes), a moving average of the student (4), a frozen fp32
  teacher (4);
  autocast in bf16; activations of 2 bytes. A run has a discriminator (published) or an auxiliary (the default).
- A GPU of {memory:.0f} GB, of which {a.usable:.0%} may be filled, {peak:.0f} TFLOP/s at {a.utilisation:.0%}
  utilisation, and
  {a.dollars_per_gpu_hour} dollars an hour. It receives {inside:.0f} GB/s inside a machine of {a.gpus_inside} and
  {between:.0f}
  GB/s between machines. Exchange overlaps with arithmetic: a step takes the longer of the two.

## Parameters, and what stays in memory, GB
Without sharding, on every GPU.

{parameters}

## The student's graph, GB per GPU
Elements are those that autograd keeps of one block, counted on the block. The all-mask state is one row for the
whole batch;
logits are kept where tokens are revealed, each once along a path; the bf16 copies of weights that autocast makes are
not counted. `--distill.parallel.activation-checkpointing` keeps the inputs of
blocks alone; `--distill.accumulate` divides all of it.

{graphs}

## What FSDP2 shards, GB per GPU
Weights, gradients, moments and averages of all networks, the teacher's weights too, divided by the GPUs; and two
gathered groups
of weights at a time (a block in bf16, or embedding and head in fp32). Activations are not sharded.

{shares}

## A step: arithmetic of one GPU, and GB that it receives
DDP exchanges fp32 gradients of what is trained, whatever the number of evaluations. FSDP2 gathers weights (blocks in
bf16, embedding and
head in fp32) for every pass through a network, so a path of more steps costs more traffic.

{moved}

## A run
DDP where it fits, else FSDP2, else with activation checkpointing. The batch grows with the GPUs: 64 of them see
eight times the
paths in the same number of steps.

{runs}

## What does not scale yet
- A checkpoint is gathered on the first process: at 8B its 20 bytes a parameter for the student and the ratio
  network's beside
  it must fit that machine's memory.
- A sharded teacher cannot be sampled from (`reference="teacher"`); data can be the reference.
- Sequences are not split over GPUs, nor are single layers: no context, tensor or pipeline parallelism.
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    defaults = Assumptions()
    for name in Assumptions.__dataclass_fields__:
        value = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--output", type=Path, default=PAGE)
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    output.write_text(render(Assumptions(**arguments)), encoding="utf-8")
    print(output)


if __name__ == "__main__":
    main()
