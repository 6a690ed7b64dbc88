"""Intermediate-state matching: student paths ``m -> z_tau -> ... -> x`` that carry the student's own probabilities.

The log-probability of a sample may be replaced by that of the path it was drawn along, ``sum_j log P(z_{j+1} | z_j)``:
the score function has the same expectation, and the student is trained in the states that a few-step sampler meets
("score decomposition" of DiDi-Instruct, arXiv 2509.25035). Coins do not depend on the student, so only the positions
that a step reveals carry a gradient in that step.

Shape suffixes: B batch, L length, V vocabulary, N chosen rows, K steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor

from .canvas import Canvas, is_first_step_of_all
from .kernels import sample_rows, token_losses
from .process import Denoiser, MaskedDiffusion, TimeLaw, evaluation_mode, logits_at
from .process.conditions import check_conditions
from .process.denoiser import check_ids
from .process.modes import differentiable_evaluation_mode
from .rollout import PathStep, Rollout, repeated_rows


class PlannedStep(NamedTuple):
    """Positions of a step of a path, known before any token is drawn."""

    rows: Tensor
    """Flattened positions whose logits the step keeps, int64 ``[N]``, ascending."""
    revealed: Tensor
    """Bool ``[N]``: those that it reveals."""
    place: Tensor | None
    """Where these stand in ``rows``, int64 ``[R]``; None where nobody has looked."""
    sequences: Tensor
    """Sequences that hold ``rows``, int64 ``[b]``, ascending."""
    is_first_of_all: bool
    """Whether all sequences take the same step from time 1."""


def true_places(flags_N: Tensor, count: int) -> Tensor:
    """``nonzero`` of flags of which ``count`` are known to be true, int64 ``[count]``: the device is not waited for."""
    return flags_N.logical_not().to(torch.uint8).sort(stable=True).indices[:count]


@dataclass(frozen=True)
class IntermediateStateMatcher:
    """Draws student paths.

    The student is read in evaluation mode, whatever mode it is in: with dropout a path would be drawn from a law that
    nobody can ask for its log-probability again.

    Args:
        process: mask and schedule.
        num_steps: numbers of steps; one of them is drawn for each batch. One step draws the sample at once; two steps
            are the paper's ``m -> z_tau -> x``; a law over several keeps one student good at all of them.
        tau_law: law of the intermediate times; an evenly spaced grid (that of the samplers) if None.
        tau_per: whether intermediate times are shared by a "group" (default) or a "batch", or drawn per "sample".
        rows: which logits a step keeps: of "revealed" positions, or of all "masked" ones.
        gradient_steps: greatest number ``m`` of steps of a path that keep a graph, drawn uniformly among the K; their
            gradients weigh ``K / m``, so the expected gradient stays. Less memory and time, more variance. All if None.
        branching: one step of the path, drawn uniformly, keeps a graph (of weight ``K``); the rows of a group share the
            path up to it, and all coins, and part at its draw. What became of each draw is so compared in equal states:
            unbiased, with less variance, and the shared part is evaluated once for the group (vine, arXiv 1502.05477).

    Raises:
        ValueError: if a number of steps is below 1, or there is none, a name is unknown, or ``branching`` is combined
            with ``gradient_steps`` or times of each sample.
    """

    process: MaskedDiffusion
    num_steps: Sequence[int] = (2,)
    tau_law: TimeLaw | None = None
    tau_per: Literal["group", "batch", "sample"] = "group"
    rows: Literal["revealed", "masked"] = "revealed"
    gradient_steps: int | None = None
    branching: bool = False

    def __post_init__(self) -> None:
        if not self.num_steps or min(self.num_steps) < 1:
            raise ValueError(f"num_steps needs one or more numbers of 1 or more, got {tuple(self.num_steps)}")
        if self.tau_per not in ("group", "batch", "sample"):
            raise ValueError(f'tau_per is "group", "batch" or "sample", got {self.tau_per!r}')
        if self.rows not in ("revealed", "masked"):
            raise ValueError(f'rows is "revealed" or "masked", got {self.rows!r}')
        if self.gradient_steps is not None and self.gradient_steps < 1:
            raise ValueError(f"gradient_steps must be at least 1, or None for all, got {self.gradient_steps}")
        if self.branching and self.gradient_steps is not None:
            raise ValueError(
                f"a branching path keeps the graph of one step; leave out gradient_steps = {self.gradient_steps}"
            )
        if self.branching and self.tau_per == "sample":
            raise ValueError('rows of a group share a branching path and its times; take tau_per="group" or "batch"')

    def __call__(
        self,
        student: Denoiser,
        shape: tuple[int, int] | None = None,
        *,
        group_size: int = 1,
        x_init: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        tokens: Tensor | None = None,
        **cond: Any,
    ) -> Rollout:
        """Draw one path for every row; each state is evaluated once, with a graph if gradients are enabled.

        Args:
            student: any `Denoiser`.
            shape: ``(B, L)``, or give ``x_init``, as in the samplers.
            group_size: consecutive rows in a group; must divide ``B``.
            generator: source of randomness.
            tokens: samples of an earlier call, int64 ``[B, L]``. Given them and a generator in the state of that call,
                the same path is walked again, whatever the student now makes probable; drawn if None.

        Raises:
            TypeError: if ``tokens`` does not hold int64.
            ValueError: if ``group_size`` does not divide the batch, the batch is empty, ``tokens`` has another shape,
                or the student's logits leave nothing to draw from: names step, sequence and position.
        """
        batch = shape[0] if shape is not None else len(x_init) if x_init is not None else 0
        if group_size < 1 or batch % group_size:
            raise ValueError(f"group_size {group_size} does not divide the batch of {batch} sequences")
        copies = group_size if self.branching else 1
        canvas = Canvas(
            self.process,
            shape if shape is None else (batch // copies, shape[1]),
            x_init=first_of_each(x_init, copies),
            attention_mask=first_of_each(attention_mask, copies),
            generator=generator,
            device=device,
        )
        check_conditions(cond, student)
        check_ids(student, canvas.largest_id)
        _check_tokens(tokens, (batch, canvas.z.shape[1]))
        times_KB, drawn_time = self._draw_times(batch, group_size, canvas.z.device, generator)
        if self.branching:
            steps, canvas = self._branching_path(canvas, student, times_KB, copies, generator, tokens, cond)
        else:
            steps = self._path(canvas, student, times_KB, generator, tokens, cond)
        rollout = Rollout(steps, canvas.movable, group_size, attention_mask, cond, drawn_time)
        rollout.check_log_probs(canvas.log_probs)
        return rollout

    def _path(
        self,
        canvas: Canvas,
        student: Denoiser,
        times_KB: Tensor,
        generator: Generator | None,
        tokens: Tensor | None,
        cond: dict[str, Any],
    ) -> list[PathStep]:
        weights = self._gradient_weights(len(times_KB) - 1, generator)
        plan = self._plan(canvas, times_KB)
        return [
            self._step(canvas, student, index, times_KB[index], times_KB[index + 1], weight, plan[index], tokens, cond)
            for index, weight in enumerate(weights)
        ]

    def _branching_path(
        self,
        trunk: Canvas,
        student: Denoiser,
        times_KB: Tensor,
        copies: int,
        generator: Generator | None,
        tokens: Tensor | None,
        cond: dict[str, Any],
    ) -> tuple[list[PathStep], Canvas]:
        """The steps of all rows, and their canvas; before the branch a step is taken once for its group."""
        num_steps = len(times_KB) - 1
        branch = int(torch.randint(num_steps, (), generator=generator, device=_place(generator)))
        shared_cond = {name: _rows_of(value, times_KB.shape[1], copies) for name, value in cond.items()}
        trunk_times = times_KB[:, ::copies]
        trunk_tokens = None if tokens is None else tokens[::copies]
        plan = self._plan(trunk, trunk_times[: branch + 2])
        steps = []
        for index in range(branch):
            t, s = trunk_times[index], trunk_times[index + 1]
            step = self._step(trunk, student, index, t, s, 0.0, plan[index], trunk_tokens, shared_cond)
            steps.append(step.repeated(copies))
        canvas = trunk.repeated(copies)
        t, s = times_KB[branch], times_KB[branch + 1]
        rows, revealed = plan[branch].rows, plan[branch].revealed
        logits_NV = self._logits(trunk, student, plan[branch], t[::copies], s[::copies], float(num_steps), shared_cond)
        rows, place = repeated_rows(rows, trunk.z.shape[1], copies)
        every = torch.arange(len(rows), device=rows.device) if self.rows == "revealed" else None
        planned = PlannedStep(rows, revealed[place], every, rows[:0], plan[branch].is_first_of_all)
        steps.append(self._draw(canvas, branch, t, s, planned, logits_NV[place], tokens))
        plan = self._plan(canvas, times_KB[branch + 1 :], first=branch + 1)
        for index, planned in enumerate(plan, start=branch + 1):
            t, s = times_KB[index], times_KB[index + 1]
            steps.append(self._step(canvas, student, index, t, s, 0.0, planned, tokens, cond))
        return steps, canvas

    def times(self, batch: int, group_size: int, device: torch.device, generator: Generator | None) -> Tensor:
        """Times from 1 to 0, ``[K + 1, B]``, with the number of steps drawn."""
        return self._draw_times(batch, group_size, device, generator)[0]

    def _draw_times(
        self, batch: int, group_size: int, device: torch.device, generator: Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        """Times, and the intermediate one that was drawn first, ``[B]``, where times are random."""
        choice = int(torch.randint(len(self.num_steps), (), generator=generator, device=_place(generator)))
        interior = self.num_steps[choice] - 1
        if self.tau_law is None:
            return torch.linspace(1.0, 0.0, interior + 2, device=device)[:, None].expand(-1, batch), None
        repeats = {"group": group_size, "batch": batch, "sample": 1}[self.tau_per]
        draws = batch // repeats
        ends = torch.ones(1, batch, device=device)
        if interior == 0:
            return torch.cat((ends, 0.0 * ends)), None
        drawn = self.tau_law.sample(interior * draws, device=_place(generator), generator=generator).t
        tau = drawn.view(interior, draws).repeat_interleave(repeats, dim=1).to(device)
        return torch.cat((ends, tau.sort(0, descending=True).values, 0.0 * ends)), tau[0]

    def _gradient_weights(self, num_steps: int, generator: Generator | None) -> list[float]:
        """Weight of each step's gradient: 0 for a step without a graph."""
        kept = self.gradient_steps
        if kept is None or kept >= num_steps:
            return [1.0] * num_steps
        order = torch.randperm(num_steps, generator=generator, device=_place(generator)).tolist()
        return [num_steps / kept if place < kept else 0.0 for place in order]

    def _step(
        self,
        canvas: Canvas,
        student: Denoiser,
        index: int,
        t: Tensor,
        s: Tensor,
        gradient_weight: float,
        planned: PlannedStep,
        tokens: Tensor | None,
        cond: dict[str, Any],
    ) -> PathStep:
        logits_NV = self._logits(canvas, student, planned, t, s, gradient_weight, cond)
        return self._draw(canvas, index, t, s, planned, logits_NV, tokens)

    def _plan(self, canvas: Canvas, times_KB: Tensor, first: int = 0) -> list[PlannedStep]:
        """Positions of all steps from number ``first`` on: they depend on coins and not on tokens, so that the host
        waits for the device once, for their numbers."""
        masked = canvas.masked()
        kept: list[Tensor] = []
        reveals: list[Tensor] = []
        for index in range(len(times_KB) - 1):
            probability = self.process.unmask_probability(times_KB[index], times_KB[index + 1])
            reveals.append(canvas.coins(first + index, probability) & masked)
            kept.append(masked if self.rows == "masked" else reveals[-1])
            masked = masked & ~reveals[-1]
        if not kept:
            return []
        counts_KB = torch.stack(kept).sum(2)
        alike = is_first_step_of_all(times_KB[:-1], times_KB[1:])
        revealed_K = torch.stack(reveals).sum((1, 2))
        numbers = torch.stack((counts_KB.sum(1), revealed_K, (counts_KB > 0).sum(1), alike.long())).tolist()
        plan = []
        for index, (num_kept, num_revealed, num_sequences, is_alike) in enumerate(zip(*numbers, strict=True)):
            rows = true_places(kept[index].flatten(), num_kept)
            revealed = reveals[index].flatten()[rows]
            sequences = true_places(counts_KB[index] > 0, num_sequences)
            plan.append(PlannedStep(rows, revealed, true_places(revealed, num_revealed), sequences, bool(is_alike)))
        return plan

    def _logits(
        self,
        canvas: Canvas,
        student: Denoiser,
        planned: PlannedStep,
        t: Tensor,
        s: Tensor,
        gradient_weight: float,
        cond: dict[str, Any],
    ) -> Tensor:
        keeps_graph = torch.is_grad_enabled() and gradient_weight > 0.0
        with torch.set_grad_enabled(keeps_graph), differentiable_evaluation_mode(student):
            if planned.is_first_of_all and canvas.rows_are_equal(cond):
                logits_NV = shared_state_logits(student, canvas.z, t, planned.rows, s=s[:1])
            else:
                logits_NV = canvas.logits(student, planned.rows, t, s, sequences=planned.sequences, **cond)
        if logits_NV.requires_grad and gradient_weight != 1.0:
            logits_NV.register_hook(lambda gradient: gradient_weight * gradient)
        return logits_NV

    def _draw(
        self,
        canvas: Canvas,
        index: int,
        t: Tensor,
        s: Tensor,
        planned: PlannedStep,
        logits_NV: Tensor,
        tokens: Tensor | None,
    ) -> PathStep:
        step = PathStep(
            canvas.z, canvas.z, t, s, planned.rows, planned.revealed, logits_NV, self.process.mask_token_id,
            planned.place, has_all_masked=self.rows == "masked",
        )  # fmt: skip
        logits_RV = step.revealed_logits().detach()
        if tokens is None:
            drawn = sample_rows(
                logits_RV,
                seed=canvas.seed,
                rows_R=step.revealed_rows(),
                step=index,
                mask_token_id=self.process.mask_token_id,
            )
            tokens_R, log_probs_R = drawn.tokens[:, 0], drawn.log_probs[:, 0]
        else:
            tokens_R = tokens.flatten()[step.revealed_rows()]
            log_probs_R = token_losses(logits_RV, None, tokens_R, mask_token_id=self.process.mask_token_id).log_prob
        canvas.write(step.revealed_rows(), tokens_R, log_probs_R.to(canvas.log_probs.dtype))
        step.z_next = canvas.z
        return step


def _check_tokens(tokens: Tensor | None, shape: tuple[int, int]) -> None:
    if tokens is None:
        return
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.long:
        got = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise TypeError(f"tokens must be int64 {list(shape)}, got {got}")
    if tokens.shape != shape:
        raise ValueError(
            f"tokens has shape {list(tokens.shape)}, the paths {list(shape)}; give the samples of the path"
        )


def first_of_each(values: Tensor | None, copies: int) -> Tensor | None:
    """One row for each group of ``copies`` equal consecutive ones.

    Raises:
        ValueError: if rows of a group differ.
    """
    if values is None or copies == 1:
        return values
    first = values[::copies]
    if not torch.equal(values, first.repeat_interleave(copies, dim=0)):
        raise ValueError("the rows of a group share their path: x_init and attention_mask must be equal within groups")
    return first


def _rows_of(value: Any, batch: int, copies: int) -> Any:
    is_per_row = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch
    return first_of_each(value, copies) if is_per_row else value


def shared_state_logits(denoiser: Denoiser, z: Tensor, t: Tensor, rows: Tensor, *, s: Tensor | None = None) -> Tensor:
    """Raw logits ``[N, V]`` at flattened positions where all sequences are in one state: evaluated once for all.

    Args:
        denoiser: any `Denoiser`.
        z: int64 ``[B, L]``, all rows equal.
        t: ``[B]``, all equal.
        rows: int64 ``[N]``.
        s: ``[1]``, for denoisers that are told where the step ends.
    """
    length = z.shape[1]
    every = torch.arange(length, device=z.device)
    return logits_at(denoiser, z[:1], t[:1], every, s=s)[rows % length]


def logits_at_states(denoiser: Denoiser, z: Tensor, t: Tensor, rows: Tensor, **cond: Any) -> Tensor:
    """Raw logits ``[N, V]`` at flattened positions, in evaluation mode; evaluated once where all sequences are in one
    state."""
    with evaluation_mode(denoiser):
        if not cond and bool((z == z[:1]).all()) and bool((t == t[0]).all()):
            return shared_state_logits(denoiser, z, t, rows)
        return logits_at(denoiser, z, t, rows, **cond)


def _place(generator: Generator | None) -> torch.device:
    return generator.device if generator is not None else torch.device("cpu")
