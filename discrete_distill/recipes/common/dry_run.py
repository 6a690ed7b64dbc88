"""What a run would do, take and need, before it starts: stages, memory of each device, time expected."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator

from ...models import DiTConfig
from .distill_config import DistillConfig, Sharing
from .environment import describe_machine
from .network_shape import NetworkShape, network_shape
from .settings import RecipeConfig
from .stage_clock import about

Shape = DiTConfig | NetworkShape

GIGABYTE = 1e9
BYTES_OF_ADAM = 8  # two fp32 averages a parameter
# Of a block's inputs and intermediate results that a backward pass needs, with fused attention, for each token and unit
# of width in 16 bits (arXiv 2205.05198 has 34 with dropout and without fused attention).
ACTIVATION_BYTES = 32
ACHIEVED = 0.4  # of the speed of large matrix products, where networks are trained


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Of one distillation step.

    Attributes:
        forward: sequences through one network, forwards.
        backward: sequences that a backward pass goes through.
        graph: sequences whose activations are kept at one time.
    """

    forward: float
    backward: float
    graph: float

    @property
    def evaluations(self) -> float:
        """Passes of one sequence through one network; a backward pass counts as two. See `EvaluationCounter`."""
        return self.forward + 2.0 * self.backward


def step_cost(config: DistillConfig, model: Shape) -> StepCost:
    """Expected over numbers of steps of a path; every state is assumed to reveal something in every sequence.

    Networks that read by blocks read states together with clean tokens, which are two sequences.
    """
    batch, time_conditioning = config.batch_size, model.time_conditioning
    _, states, graph = config.method.path_evaluations(batch, time_conditioning=time_conditioning)
    forward, backward = config.method.loss_evaluations(batch, time_conditioning=time_conditioning)
    if model.block_length:
        kind: Any = config.method.method_class
        states, graph, backward = 2.0 * states, 2.0 * graph, 2.0 * backward
        forward = 2.0 * forward if kind.reads_teacher else forward
    forward, backward = forward + states, backward + graph
    if config.discriminator:
        forward += 2.0 * batch / config.discriminator_every
        backward += 2.0 * batch / config.discriminator_every
    return StepCost(forward=forward, backward=backward, graph=max(graph, float(batch)))


def distillation_evaluations(config: DistillConfig, model: Shape) -> float:
    """Network evaluations of one sequence in a whole distillation; see `StepCost`."""
    return config.loop.num_steps * step_cost(config, model).evaluations


def memory_needed(config: DistillConfig, model: Shape, length: int, *, half: bool) -> dict[str, float]:
    """Bytes on each device, by what they are for. An estimate: allocators and libraries take more."""
    model = network_shape(model)
    unit = 2 if half else 4
    trained = 4 + 4 + BYTES_OF_ADAM
    adapted = config.sharing == "adapters"
    parameters = float(config.rank * model.rank_parameters if adapted else model.parameters)
    needed = {
        "teacher": 4.0 * model.parameters,
        "student": (trained + (4 if config.student.ema_decay else 0)) * parameters,
    }
    if "auxiliary" in config.planned_updates():
        needed["auxiliary"] = (trained + (4 if config.ratio.ema_decay else 0)) * parameters
    if config.discriminator:
        share = 1.0 if adapted else min(config.discriminator_blocks, model.num_layers) / model.num_layers
        needed["discriminator"] = (4.0 + share * (trained - 4 + (4 if config.ratio.ema_decay else 0))) * parameters
    cost = step_cost(config, model)
    per_sequence = length * model.hidden_size * model.num_layers * ACTIVATION_BYTES * unit / 2
    # Every token is revealed once along a path: its logits, and their gradient in fp32.
    logits = config.batch_size * length * model.vocab_size * (unit + 4.0)
    needed["activations"] = cost.graph * per_sequence / config.accumulate
    needed["logits"] = logits / config.accumulate
    return needed


def seconds_per_step(config: DistillConfig, model: Shape, length: int, flops_per_second: float) -> float:
    """Operations of the step's passes (2 a parameter and token forwards, twice that backwards) over the achieved."""
    model = network_shape(model)
    parameters = model.parameters - model.vocab_size * model.hidden_size
    return 2.0 * parameters * length * step_cost(config, model).evaluations / (ACHIEVED * flops_per_second)


def matmul_speed(device: torch.device, dtype: torch.dtype, *, size: int = 1024, seconds: float = 0.3) -> float:
    """Operations per second of square matrix products on a device, measured."""
    size = 4096 if device.type == "cuda" else size
    a = torch.randn(size, size, device=device).to(dtype)
    for _ in range(2):
        a @ a
    rounds, started = 0, _now(device)
    while _now(device) - started < seconds:
        a @ a
        rounds += 1
    return rounds * 2.0 * size**3 / (_now(device) - started)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def describe_run(
    config: RecipeConfig,
    methods: Mapping[str, DistillConfig],
    stages: Sequence[str],
    accelerator: Accelerator,
    check: Callable[[], None],
    *,
    model: Shape | None = None,
) -> str:
    """What ``--dry-run`` prints.

    Args:
        config: of the run.
        methods: distillations that it holds, by name.
        stages: that would run.
        accelerator: device and precision.
        check: raises ValueError or OSError if something is missing.
        model: shape of the teacher that is distilled; the one that would be trained by default.
    """
    try:
        check()
        missing = ""
    except (ValueError, OSError) as error:
        missing = f"missing: {' '.join(str(error).split())}"
    if missing and model is None:
        return f"would run: {', '.join(stages)} into {config.directory}\n{missing}"
    model, device = network_shape(model or config.teacher.model), accelerator.device
    speed = matmul_speed(device, torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32)
    lines = [
        f"would run: {', '.join(stages)} into {config.directory}",
        f"machine: {describe_machine(accelerator)}, {accelerator.num_processes} process(es), "
        f"{speed / 1e12:.2f} TFLOP/s in matrix products, of which {ACHIEVED:.0%} are expected to be achieved",
        f"network: {model.parameters / 1e6:.1f}M parameters "
        f"({model.num_layers} layers, {model.hidden_size} wide, {model.vocab_size} classes), "
        f"length {config.data.length}",
    ]
    for name, distill in methods.items():
        lines += _describe_method(name, distill, config, model, accelerator, speed)
    if "discriminator" in stages:
        fit = config.discriminator
        lines.append(
            f"discriminator: {fit.updates} updates of {fit.batch_size} sequences of student and text, out of "
            f"{fit.pool} samples of the student in {fit.num_steps} steps"
        )
    lines.append("these are estimates: half or twice as long would be no surprise")
    lines.append(missing or "nothing is missing")
    return "\n".join(lines)


def _describe_method(
    name: str,
    distill: DistillConfig,
    config: RecipeConfig,
    model: Shape,
    accelerator: Accelerator,
    speed: float,
) -> list[str]:
    length, half = config.data.length, accelerator.mixed_precision == "bf16"
    needed = memory_needed(distill, model, length, half=half)
    per_step, steps = seconds_per_step(distill, model, length, speed), distill.loop.num_steps
    return [
        f"{name}: {steps} steps of {distill.batch_size} sequences, {step_cost(distill, model).evaluations:.0f} network "
        f"evaluations a step",
        f"  time expected: {per_step:.2f} s a step, {about(per_step * steps)} in all",
        f"  memory on each device: {sum(needed.values()) / GIGABYTE:.2f} GB "
        f"({', '.join(f'{part} {size / GIGABYTE:.2f}' for part, size in needed.items())})",
        *_room(accelerator.device, sum(needed.values())),
        *_other_sharing(distill, model, length, half),
    ]


def _other_sharing(distill: DistillConfig, model: Shape, length: int, half: bool) -> list[str]:
    """The memory of the choice of ``--distill.sharing`` that was not made, where it can be."""
    other: Sharing = "copies" if distill.sharing == "adapters" else "adapters"
    if distill.parallel.strategy == "fsdp":
        return []
    needed = sum(memory_needed(replace(distill, sharing=other), model, length, half=half).values())
    return [f"  with --distill.sharing {other}: {needed / GIGABYTE:.2f} GB"]


def _room(device: torch.device, needed: float) -> list[str]:
    if device.type == "cuda":
        found = [(f"cuda:{i}", torch.cuda.get_device_properties(i)) for i in range(torch.cuda.device_count())]
        devices = [(f"{name} {properties.name}", properties.total_memory) for name, properties in found]
    else:
        devices = [("this machine", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    judged = {True: "enough", False: "TOO LITTLE: raise --distill.accumulate, or lower --distill.batch-size"}
    return [f"  {name}: {size / GIGABYTE:.1f} GB, {judged[needed < 0.9 * size]}" for name, size in devices]
