"""Intermediate-state matching: student paths ``m -> z_tau -> ... -> x`` that carry the student's own probabilities.

The log-probability of a sample may be replaced by that of the path it was drawn along, ``sum_j log P(z_{j+1} | z_j)``:
the score function has the same expectation, and the student is trained in the states that a few-step sampler meets
("score decomposition" of DiDi-Instruct, arXiv 2509.25035). Coins do not depend on the student, so only the positions
that a step reveals carry a gradient in that step.

Shape suffixes: B batch, L length, V vocabulary, N chosen rows, K steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor

from ..checks import check_count
from ..kernels import token_losses
from ..process import Denoiser, MaskedDiffusion, TimeDistribution
from ..process.modes import differentiable_evaluation_mode
from ..samplers.grid import coin_flags
from ..samplers.inputs import has_rows
from ..samplers.rows import Rows
from ..samplers.state import SamplerState
from .rollout import Rollout, TrajectoryStep, repeated_rows


class PlannedStep(NamedTuple):
    """Positions of a step of a path, known before any token is drawn."""

    rows: Rows
    """Positions whose logits the step keeps, ascending."""
    revealed: Tensor
    """Bool ``[N]``: those that it reveals."""
    place: Tensor | None
    """Where these stand in ``rows``, int64 ``[R]``; None where nobody has looked."""
    one_time: bool
    """Whether all sequences take the step between the same times."""


def true_places(flags_N: Tensor, count: int) -> Tensor:
    """``nonzero`` of flags of which ``count`` are known to be true, int64 ``[count]``: the device is not waited for."""
    return flags_N.logical_not().to(torch.uint8).sort(stable=True).indices[:count]


@dataclass(frozen=True)
class IntermediateStateMatcher:
    """Draws student paths.

    The student is read in evaluation mode, whatever mode it is in: with dropout a path would be drawn from a
        distribution that
    nobody can ask for its log-probability again.

    Args:
        process: mask and schedule.
        num_steps: numbers of steps; one of them is drawn for each batch. One step draws the sample at once; two steps
            are the paper's ``m -> z_tau -> x``; a distribution over several keeps one student good at all of them.
        tau_distribution: distribution of the intermediate times; an evenly spaced grid (that of the samplers) if None.
        tau_per: whether intermediate times are shared by a "group" (default) or a "batch", or drawn per "sample".
        rows: which logits a step keeps: of "revealed" positions, or of all "masked" ones.
        gradient_steps: greatest number ``m`` of steps of a path that keep a graph, drawn uniformly among the K; their
            gradients weigh ``K / m``, so the expected gradient stays. Less memory and time, more variance. All if None.
        branching: one step of the path, drawn uniformly, keeps a graph (of weight ``K``); the rows of a group share the
            path up to it, and all unmasking draws, and part at its draw. What became of each draw is so compared in
            equal states: unbiased, with less variance, and the shared part is evaluated once for the group (vine, arXiv
                1502.05477).

    Raises:
        ValueError: if a number of steps is below 1, or there is none, a name is unknown, or ``branching`` is combined
            with ``gradient_steps`` or times of each sample.
    """

    process: MaskedDiffusion
    num_steps: Sequence[int] = (2,)
    tau_distribution: TimeDistribution | None = None
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
        num_steps: int | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> Rollout:
        """Draw one path for every row; each state is evaluated once, with a graph if gradients are enabled.

        Args:
            student: any `Denoiser`.
            shape: ``(B, L)``, or give ``x_init``, as in the samplers.
            group_size: consecutive rows in a group; must divide ``B``.
            x_init: int64 ``[B, L]``, as in the samplers.
            attention_mask: bool ``[B, L]``, as in the samplers.
            generator: source of randomness.
            device: of unconditional paths.
            tokens: samples of an earlier call, int64 ``[B, L]``. Given them and a generator in the state of that call,
                the same path is walked again, whatever the student now makes probable; drawn if None.
            num_steps: steps of these paths; one of the matcher's is drawn if None. Processes that must call a network
                equally often are given the same.
            model_kwargs: passed to all networks by keyword.

        Raises:
            TypeError: if ``num_steps`` is no whole number, ``tokens`` does not hold int64, or as in the samplers.
            ValueError: if ``num_steps`` is below 1, ``group_size`` does not divide the batch, the batch is empty,
                ``tokens`` has another shape, or the student's logits leave nothing to draw from: names step, sequence
                and position.

        Example:
            >>> matcher = IntermediateStateMatcher(process, num_steps=(4,))
            >>> rollout = matcher(student, (64, 1024), group_size=4, generator=torch.Generator().manual_seed(0))
            >>> rollout.log_prob().sum().backward()
        """
        batch = shape[0] if shape is not None else len(x_init) if x_init is not None else 0
        if group_size < 1 or batch % group_size:
            raise ValueError(f"group_size {group_size} does not divide the batch of {batch} sequences")
        if num_steps is not None:
            check_count("num_steps", num_steps)
        copies = group_size if self.branching else 1
        start = SamplerState(
            self.process,
            student,
            shape if shape is None else (batch // copies, shape[1]),
            x_init=first_of_each(x_init, copies),
            attention_mask=first_of_each(attention_mask, copies),
            model_kwargs=_first_of_each(model_kwargs, batch, copies),
            generator=generator,
            device=device,
        )
        _check_tokens(tokens, (batch, start.tokens.shape[1]))
        times_KB, drawn_time = self._draw_times(batch, group_size, start.tokens.device, generator, num_steps)
        conditions = dict(model_kwargs or {})
        if self.branching:
            steps, state = self._branching_path(start, times_KB, generator, tokens, conditions)
        else:
            weights = self._gradient_weights(len(times_KB) - 1, generator)
            steps, state = self._walk(start, times_KB, tokens, weights), start
        rollout = Rollout(steps, state.generation_mask, group_size, attention_mask, conditions, drawn_time)
        rollout.check_log_probs(state.log_probs)
        return rollout

    def _branching_path(
        self,
        trunk: SamplerState,
        times_KB: Tensor,
        generator: Generator | None,
        tokens: Tensor | None,
        model_kwargs: Mapping[str, Any],
    ) -> tuple[list[TrajectoryStep], SamplerState]:
        """The steps of all rows, and their state; before the branch a step is taken once for its group."""
        copies = times_KB.shape[1] // trunk.batch
        num_steps = len(times_KB) - 1
        branch = int(torch.randint(num_steps, (), generator=generator, device=_place(generator)))
        trunk_times = times_KB[: branch + 2, ::copies]
        trunk_tokens = None if tokens is None else tokens[::copies]
        plan = self._plan(trunk, trunk_times)
        steps = []
        for index in range(branch):
            step = self._step(trunk, index, trunk_times[index], trunk_times[index + 1], 0.0, plan[index], trunk_tokens)
            steps.append(step.repeated(copies))
        state = trunk.repeated(copies, model_kwargs)
        shared = plan[branch]
        logits_NV = self._logits(trunk, shared, trunk_times[branch], trunk_times[branch + 1], float(num_steps))
        rows, place = repeated_rows(shared.rows.index, trunk.tokens.shape[1], copies)
        every = torch.arange(len(rows), device=rows.device) if self.rows == "revealed" else None
        planned = PlannedStep(Rows(rows, None, rows), shared.revealed[place], every, shared.one_time)
        steps.append(
            self._draw(state, branch, times_KB[branch], times_KB[branch + 1], planned, logits_NV[place], tokens)
        )
        weights = [0.0] * (num_steps - branch - 1)
        return [*steps, *self._walk(state, times_KB[branch + 1 :], tokens, weights, first=branch + 1)], state

    def _walk(
        self, state: SamplerState, times_KB: Tensor, tokens: Tensor | None, weights: list[float], first: int = 0
    ) -> list[TrajectoryStep]:
        """Take all steps between the times, from number ``first`` on."""
        plan = self._plan(state, times_KB, first)
        return [
            self._step(state, first + index, times_KB[index], times_KB[index + 1], weight, plan[index], tokens)
            for index, weight in enumerate(weights)
        ]

    def times(self, batch: int, group_size: int, device: torch.device, generator: Generator | None) -> Tensor:
        """Times from 1 to 0, ``[K + 1, B]``, with the number of steps drawn."""
        return self._draw_times(batch, group_size, device, generator)[0]

    def _draw_times(
        self,
        batch: int,
        group_size: int,
        device: torch.device,
        generator: Generator | None,
        num_steps: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Times, and the intermediate one that was drawn first, ``[B]``, where times are random."""
        choices = self.num_steps if num_steps is None else (num_steps,)
        interior = choices[int(torch.randint(len(choices), (), generator=generator, device=_place(generator)))] - 1
        if self.tau_distribution is None:
            return torch.linspace(1.0, 0.0, interior + 2, device=device)[:, None].expand(-1, batch), None
        repeats = {"group": group_size, "batch": batch, "sample": 1}[self.tau_per]
        draws = batch // repeats
        ends = torch.ones(1, batch, device=device)
        if interior == 0:
            return torch.cat((ends, 0.0 * ends)), None
        drawn = self.tau_distribution.sample(interior * draws, device=_place(generator), generator=generator).t
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
        state: SamplerState,
        index: int,
        t: Tensor,
        s: Tensor,
        gradient_weight: float,
        planned: PlannedStep,
        tokens: Tensor | None,
    ) -> TrajectoryStep:
        logits_NV = self._logits(state, planned, t, s, gradient_weight)
        return self._draw(state, index, t, s, planned, logits_NV, tokens)

    def _plan(self, state: SamplerState, times_KB: Tensor, first: int = 0) -> list[PlannedStep]:
        """Positions of all steps from number ``first`` on: they depend on unmasking draws and not on tokens, so that
        the host waits for the device once, for their numbers."""
        if len(times_KB) < 2:
            return []
        masked, length = state.masked(), state.tokens.shape[1]
        reveals, _ = coin_flags(state, times_KB, first=first)
        kept: list[Tensor] = []
        for flags in reveals:
            kept.append(masked if self.rows == "masked" else flags)
            masked = masked & ~flags
        counts_KB = torch.stack(kept).sum(2)
        t, s = times_KB[:-1], times_KB[1:]
        one_time_K = ((t == t[:, :1]) & (s == s[:, :1])).all(1)
        revealed_K = torch.stack(reveals).sum((1, 2))
        numbers = torch.stack((counts_KB.sum(1), revealed_K, (counts_KB > 0).sum(1), one_time_K.long())).tolist()
        plan = []
        for index, (num_kept, num_revealed, num_sequences, one_time) in enumerate(zip(*numbers, strict=True)):
            chosen = true_places(kept[index].flatten(), num_kept)
            sequences = true_places(counts_KB[index] > 0, num_sequences)
            compact = torch.searchsorted(sequences, chosen // length) * length + chosen % length
            revealed = reveals[index].flatten()[chosen]
            rows = Rows(chosen, sequences, compact)
            plan.append(PlannedStep(rows, revealed, true_places(revealed, num_revealed), bool(one_time)))
        return plan

    def _logits(
        self, state: SamplerState, planned: PlannedStep, t: Tensor, s: Tensor, gradient_weight: float
    ) -> Tensor:
        keeps_graph = torch.is_grad_enabled() and gradient_weight > 0.0
        with torch.set_grad_enabled(keeps_graph), differentiable_evaluation_mode(state.denoiser):
            logits_of = state.logits(planned.rows, t, s, one_time=planned.one_time, share_head=True)
            logits_NV = logits_of(slice(None))
        if logits_NV.requires_grad and gradient_weight != 1.0:
            logits_NV.register_hook(lambda gradient: gradient_weight * gradient)
        return logits_NV

    def _draw(
        self,
        state: SamplerState,
        index: int,
        t: Tensor,
        s: Tensor,
        planned: PlannedStep,
        logits_NV: Tensor,
        tokens: Tensor | None,
    ) -> TrajectoryStep:
        step = TrajectoryStep(
            state.tokens, state.tokens, t, s, planned.rows.index, planned.revealed, logits_NV,
            self.process.mask_token_id, planned.place, has_all_masked=self.rows == "masked",
        )  # fmt: skip
        positions, logits_RV = step.revealed_rows(), step.revealed_logits().detach()
        if tokens is None:
            drawn = state.draw_tokens(logits_RV, positions, index)
            tokens_R, log_probs_R = drawn.tokens[:, 0], drawn.log_probs[:, 0]
        else:
            tokens_R = tokens.flatten()[positions]
            log_probs_R = token_losses(logits_RV, None, tokens_R, mask_token_id=self.process.mask_token_id).log_prob
        state.write(positions, tokens_R, log_probs_R.to(state.log_probs.dtype))
        step.x_s = state.tokens
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


def _first_of_each(model_kwargs: Mapping[str, Any] | None, batch: int, copies: int) -> Mapping[str, Any] | None:
    if not isinstance(model_kwargs, Mapping):
        return model_kwargs
    return {
        name: first_of_each(value, copies) if has_rows(value, batch) else value for name, value in model_kwargs.items()
    }


def _place(generator: Generator | None) -> torch.device:
    return generator.device if generator is not None else torch.device("cpu")
