"""The interface of a distillation method, and the plan of updates that a training loop obeys."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor, nn

from ...checks import check_count
from ...samplers import Frame
from ..rollout import DrawnBatch
from .output import Credit, LogRatioOutput, StepOutput


@dataclass(frozen=True, kw_only=True)
class UpdatePlan:
    """Which networks a training step updates, in which order, and how often.

    Args:
        order: names of the trained networks, ``"student"`` among them, in the order of their updates in one step.
        updates: updates of a network in one step; 1 where a name is missing.
        warmup: number of first steps in which the student is not updated.
        reads_reference: names of the networks whose loss reads reference sequences, and ``"rollout"`` if
            `DistillationMethod.rollout` reads them.
        keeps_logits: whether the loss of another network than the student reads the logits of the rollout. A loop that
            processes a batch in parts must then keep them.
        rounds: equal shares of the training. The student of a round is the teacher of the next round.

    Raises:
        TypeError: if a number of updates, steps or rounds is not an integer.
        ValueError: if the order lacks the student or names a network twice, a name of ``updates`` or
            ``reads_reference`` is not in the order, or a number is out of range.

    Examples:
        >>> plan = UpdatePlan(order=("student", "auxiliary"), updates={"auxiliary": 2}, warmup=1)
        >>> plan.networks(0), plan.networks(1)
        (('auxiliary', 'auxiliary'), ('student', 'auxiliary', 'auxiliary'))
        >>> plan.planned_updates(10)
        {'student': 9, 'auxiliary': 20}
    """

    order: tuple[str, ...]
    updates: Mapping[str, int] = field(default_factory=dict)
    warmup: int = 0
    reads_reference: tuple[str, ...] = ()
    keeps_logits: bool = False
    rounds: int = 1

    def __post_init__(self) -> None:
        if "student" not in self.order or len(set(self.order)) != len(self.order):
            raise ValueError(f"order must name the student, and no network twice, got {self.order}")
        unknown = {*self.updates, *self.reads_reference} - {*self.order, "rollout"}
        if unknown:
            raise ValueError(f"{sorted(unknown)} are not among the trained networks {self.order}")
        for name, count in self.updates.items():
            check_count(f"updates of {name}", count)
        check_count("warmup", self.warmup, minimum=0)
        check_count("rounds", self.rounds)

    def updates_student(self, step: int) -> bool:
        """Whether training step ``step`` (0 is the first) updates the student."""
        return step >= self.warmup

    @property
    def rollout_reads_reference(self) -> bool:
        """Whether `DistillationMethod.rollout` needs reference sequences."""
        return "rollout" in self.reads_reference

    def round_of(self, step: int, num_steps: int) -> int:
        """Round of training step ``step`` out of ``num_steps``; 0 is the first."""
        return min(step * self.rounds // max(num_steps, 1), self.rounds - 1)

    def networks(self, step: int) -> tuple[str, ...]:
        """Names of the networks to update in training step ``step``, in order; a network with several updates is named
        as often."""
        return tuple(
            name
            for name in self.order
            if name != "student" or self.updates_student(step)
            for _ in range(self.updates.get(name, 1))
        )

    def planned_updates(self, num_steps: int, *, every: Mapping[str, int] | None = None) -> dict[str, int]:
        """Number of updates of each network in ``num_steps`` training steps.

        Args:
            num_steps: training steps.
            every: steps between two turns of a network, where a loop updates it more rarely than planned.
        """
        every = every or {}
        steps = {name: math.ceil(num_steps / every.get(name, 1)) for name in self.order}
        steps["student"] = max(num_steps - self.warmup, 0)
        return {name: count * self.updates.get(name, 1) for name, count in steps.items()}


@runtime_checkable
class DistillationMethod(Protocol):
    """A distillation method. It holds networks and choices, and neither an optimiser nor a device.

    Attributes:
        student: the network that is trained.

    Examples:
        >>> method = DiDiInstruct(networks, process)
        >>> optimizers = {name: torch.optim.AdamW(each) for name, each in networks.trainable_parameters().items()}
        >>> for step in range(2):
        ...     method.begin_step(step, num_steps=2)
        ...     rollout = method.rollout(8, 16, reference=data, generator=generator)
        ...     for name in method.update_plan.networks(step):
        ...         method.loss(name, rollout, reference=data, generator=generator).loss.backward()
        ...         optimizers[name].step()
        ...         optimizers[name].zero_grad()
    """

    student: nn.Module

    @property
    def update_plan(self) -> UpdatePlan:
        """Order and number of the updates in a training step."""
        ...

    def begin_step(self, step: int, num_steps: int, *, average: nn.Module | None = None) -> None:
        """Prepare a training step, before its rollout. Where ``update_plan.rounds`` is 1 there is nothing to prepare.

        Args:
            step: number of the training step; 0 is the first.
            num_steps: training steps of the whole run.
            average: moving average of the student, if the loop keeps one. The teacher of a new round is a copy of it,
                or of the student.
        """
        ...

    def rollout(
        self,
        batch_size: int | None = None,
        length: int | Frame | None = None,
        *,
        x_init: Tensor | None = None,
        attention_mask: Tensor | None = None,
        reference: Tensor | None = None,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        tokens: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> DrawnBatch:
        """Draw what the losses of one training step are computed from, such as paths of the student.

        Args:
            batch_size: number of sequences.
            length: tokens of a sequence, or a `Frame` around them.
            x_init: sequences to complete, int64 ``[B, L]``; masks are generated. In place of the two sizes.
            attention_mask: bool ``[B, L]``, true at real tokens.
            reference: clean tokens of data or of the teacher, int64 ``[B, L]``, where
                ``update_plan.rollout_reads_reference``; ignored elsewhere.
            generator: source of randomness.
            device: of the rollout; that of the network by default.
            tokens: ``sequences`` of an earlier call with the same state of ``generator``, to draw the same batch again.
            model_kwargs: passed to all networks by keyword.
        """
        ...

    def loss(
        self,
        name: str,
        rollout: Any,
        *,
        reference: Tensor | None = None,
        generator: Generator | None = None,
        num_tokens: Tensor | float | None = None,
        credit: Credit | None = None,
        log_ratio_output: LogRatioOutput | None = None,
    ) -> StepOutput:
        """Compute the loss of one network of the plan.

        Args:
            name: one of ``update_plan.order``.
            rollout: of this step, as `rollout` returned it.
            reference: clean tokens of data or of the teacher, int64 ``[B, L]``, for networks in
                ``update_plan.reads_reference``; others ignore it.
            generator: source of randomness.
            num_tokens: divisor of sums over generated tokens, where the rollout is one part of a batch; the rollout's
                own number by default.
            credit: of `credits`, for the student, where the rollout is one part of a batch.
            log_ratio_output: of an earlier loss of this step, for the same rollout
                (``StepOutput.log_ratio_output``), for the student.

        Raises:
            ValueError: if the method does not train ``name``, or its loss needs a reference and got none.
        """
        ...

    def credits(
        self,
        rollouts: Sequence[Any],
        log_ratio_outputs: Sequence[LogRatioOutput | None] | None = None,
        generators: Sequence[Generator] | None = None,
        *,
        references: Sequence[Callable[[], Tensor]] | None = None,
    ) -> list[Credit] | None:
        """Rewards of a batch in parts, normalised over all of it; None if the method does not compare samples.

        Args:
            rollouts: of every part; graphs and logits are not read.
            log_ratio_outputs: of every part; see `loss`.
            generators: of every part.
            references: of every part, called where the rewards read a reference.
        """
        ...

    def rollout_metrics(self, rollout: Any) -> dict[str, Tensor]:
        """Detached scalars that need no network, for steps in which the student is not updated."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs in addition to the networks."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from `state_dict`."""
        ...
