"""Equal budgets: what a training step costs, in seconds and network evaluations, and how many steps are paid for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ...training import step_generator
from .results import write_results
from .students import StudentTraining

BudgetKind = Literal["seconds", "network_evaluations"]
FIRST_TRIED = 10_000  # A step of the middle of a run: no warm-up in which the student rests.


class EvaluationCounter:
    """Count evaluations of whole sequences: one for each forward pass of one sequence through one network, two more
    where a backward pass follows. A pass over noisy and clean tokens, ``[x_t | x_0]``, reads a sequence twice and
    counts as two; one over a block of a sequence counts as one, as in `SamplerOutput`. Passes are seen at the first
    block, those with a graph at the last, so that any network of blocks will do, and a pass that ends at hidden states
    counts as a whole one.

    Args:
        length: tokens of a sequence.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.count = 0
        self._watched: WeakSet[nn.Module] = WeakSet()

    def watch(self, networks: Iterable[nn.Module]) -> None:
        """Count these from now on; those that are watched already are not counted twice."""
        for network in networks:
            blocks = list_of_blocks(network)
            if blocks[-1] not in self._watched:
                self._watched.add(blocks[-1])
                blocks[0].register_forward_hook(self._note_pass)
                blocks[-1].register_forward_hook(self._note_graph)

    def _note_pass(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self.count += self._sequences(output)

    def _note_graph(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self.count += 2 * self._sequences(output) * _hidden(output).requires_grad

    def _sequences(self, output: Any) -> int:
        """Sequences that hidden states ``[B, T, D]`` stand for."""
        hidden = _hidden(output)
        return len(hidden) * max(1, round(hidden.shape[1] / self.length))

    def take(self) -> int:
        """The count since the last take."""
        count, self.count = self.count, 0
        return count


def _hidden(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def list_of_blocks(network: nn.Module) -> nn.ModuleList:
    """The blocks of a denoiser, a discriminator or a GPT-2."""
    for path in ("blocks", "backbone.blocks", "transformer.h"):
        found: Any = network
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None:
            return found
    raise TypeError(f"{type(network).__name__} has no list of blocks to count evaluations at")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long a method is trained.

    Attributes:
        num_steps: training steps.
        seconds_per_step: when it was tried.
        evaluations_per_step: likewise.
        kind: of the budget.
        amount: seconds or evaluations.
    """

    num_steps: int
    seconds_per_step: float
    evaluations_per_step: float
    kind: str
    amount: float


def plan_steps(
    make: Callable[[int], StudentTraining],
    kind: BudgetKind,
    amount: float,
    file: Path,
    *,
    length: int,
    seed: int,
    tried_steps: int = 8,
) -> Plan:
    """Steps that ``amount`` pays for, from a few steps of a throw-away training; written to ``file``, and read from
    there the next time, so that a run that is taken up again keeps its length. Another budget is another plan.
    Sequences have ``length`` tokens.
    """
    known = _read_plan(file)
    if known is not None and (known.kind, known.amount) == (kind, amount):
        return known
    training, counter = make(2 * FIRST_TRIED), EvaluationCounter(length)
    seconds = []
    for index in range(FIRST_TRIED - 1, FIRST_TRIED + tried_steps):
        counter.watch(training.networks())
        if index == FIRST_TRIED:
            counter.take()
        generator = step_generator(seed, index, device=_device_of(training))
        started = time.perf_counter()
        training.step(index, generator)
        seconds.append(time.perf_counter() - started)
    per_step = sum(seconds[1:]) / tried_steps
    evaluations = counter.take() / tried_steps
    cost = per_step if kind == "seconds" else evaluations
    if amount < cost:
        raise ValueError(f"a budget of {amount:g} {kind} is less than one training step, which costs {cost:.3g}")
    plan = Plan(
        num_steps=int(amount / cost),
        seconds_per_step=per_step,
        evaluations_per_step=evaluations,
        kind=kind,
        amount=amount,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_results(file, asdict(plan))
    return plan


def _read_plan(file: Path) -> Plan | None:
    """None where there is none that can be read."""
    try:
        return Plan(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def counted_step(
    training: StudentTraining, counter: EvaluationCounter
) -> Callable[[int, torch.Generator], dict[str, float]]:
    """The training's step with ``network_evaluations`` among its metrics."""

    def step(index: int, generator: torch.Generator) -> dict[str, float]:
        counter.watch(training.networks())
        metrics = training.step(index, generator)
        return {**metrics, "network_evaluations": float(counter.take())}

    return step


def total_evaluations(history: list[dict[str, float]]) -> float:
    """Of a whole run, from the means in its log."""
    before, total = 0.0, 0.0
    for entry in history:
        total += entry.get("network_evaluations", 0.0) * (entry["step"] - before)
        before = entry["step"]
    return total


def _device_of(training: StudentTraining) -> torch.device:
    return next(training.student.module.parameters()).device
