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
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from .canvas import Canvas
from .kernels import sample_rows
from .process import Denoiser, MaskedDiffusion, TimeLaw, logits_at


@dataclass
class PathStep:
    """One step of a student path.

    Attributes:
        z: state before, int64 ``[B, L]``.
        z_next: state after.
        t: time before, ``[B]``.
        s: time after, ``[B]``.
        rows: flattened positions whose log-probabilities were computed, int64 ``[N]``, ascending.
        revealed: bool ``[N]``: those that this step revealed.
        log_probs_NV: the student's log-probabilities there, with their graph if the step keeps one.
    """

    z: Tensor
    z_next: Tensor
    t: Tensor
    s: Tensor
    rows: Tensor
    revealed: Tensor
    log_probs_NV: Tensor

    def token_log_probs(self) -> Tensor:
        """``log p(x_i | z)`` at the revealed positions, 0 elsewhere; ``[B, L]``, differentiable."""
        rows = self.rows[self.revealed]
        drawn = self.z_next.flatten()[rows]
        values = self.log_probs_NV[self.revealed].gather(1, drawn[:, None]).squeeze(1)
        return torch.zeros_like(self.z, dtype=values.dtype).flatten().index_put((rows,), values).view_as(self.z)


@dataclass
class Probe:
    """A step's outcome with some of what it revealed hidden again: where a network is asked how the rest continues.

    A position that was masked at ``t`` is hidden with probability ``h`` whether or not it was revealed, so given the
    state ``z`` all hidden positions are alike, and a sum over them weighted by ``q / h``, with ``q`` the step's
    probability of revealing, estimates the sum over revealed positions.

    Attributes:
        z: int64 ``[B, L]``.
        t: its time by the number of masks, ``[B]``.
        rows: flattened hidden positions, int64 ``[N]``.
        index: where each stands in the step's own ``rows``, int64 ``[N]``.
        weight: ``q / h``, ``[N]``.
    """

    z: Tensor
    t: Tensor
    rows: Tensor
    index: Tensor
    weight: Tensor


@dataclass
class Rollout:
    """A batch of student paths.

    Attributes:
        steps: the K steps, from all mask to the sample.
        movable: bool ``[B, L]``; the positions that the student wrote.
        group_size: consecutive rows that share what their comparison must hold fixed.
        attention_mask: bool ``[B, L]`` or None.
        cond: what else the denoisers are given.
    """

    steps: list[PathStep]
    movable: Tensor
    group_size: int
    attention_mask: Tensor | None
    cond: dict[str, Any]

    @property
    def sequences(self) -> Tensor:
        """The samples, int64 ``[B, L]``."""
        return self.steps[-1].z_next

    @property
    def tau(self) -> Tensor:
        """Time of the first intermediate state, ``[B]`` (1 for a path of one step)."""
        return self.steps[0].s if len(self.steps) > 1 else self.steps[0].t

    def token_log_probs(self) -> Tensor:
        """Log-probability of every token in the step that revealed it, ``[B, L]``; 0 where it was given."""
        return torch.stack([step.token_log_probs() for step in self.steps]).sum(0)

    def log_prob(self) -> Tensor:
        """Exact log-probability of the tokens along the path given its coins, ``[B]``, nats, differentiable."""
        return self.token_log_probs().sum(1)

    def denoiser_kwargs(self) -> dict[str, Any]:
        """What a denoiser is called with beside state and time."""
        mask = {} if self.attention_mask is None else {"attention_mask": self.attention_mask}
        return {**mask, **self.cond}


@dataclass(frozen=True)
class IntermediateStateMatcher:
    """Draws student paths.

    Args:
        process: mask and schedule.
        num_steps: numbers of steps; one of them is drawn for each batch. One step draws the sample at once; two steps
            are the paper's ``m -> z_tau -> x``; a law over several keeps one student good at all of them.
        tau_law: law of the intermediate times; an evenly spaced grid (that of the samplers) if None.
        tau_per: whether intermediate times are shared by a "group" (default) or a "batch", or drawn per "sample".
        rows: which log-probabilities a step keeps: of "revealed" positions, or of all "masked" ones.
        gradient_steps: greatest number ``m`` of steps of a path that keep a graph, drawn uniformly among the K; their
            gradients weigh ``K / m``, so the expected gradient stays. Less memory and time, more variance. All if None.

    Raises:
        ValueError: if a number of steps is below 1, or there is none, or a name is unknown.
    """

    process: MaskedDiffusion
    num_steps: Sequence[int] = (2,)
    tau_law: TimeLaw | None = None
    tau_per: Literal["group", "batch", "sample"] = "group"
    rows: Literal["revealed", "masked"] = "revealed"
    gradient_steps: int | None = None

    def __post_init__(self) -> None:
        if not self.num_steps or min(self.num_steps) < 1:
            raise ValueError(f"num_steps needs one or more numbers of 1 or more, got {tuple(self.num_steps)}")
        if self.tau_per not in ("group", "batch", "sample"):
            raise ValueError(f'tau_per is "group", "batch" or "sample", got {self.tau_per!r}')
        if self.rows not in ("revealed", "masked"):
            raise ValueError(f'rows is "revealed" or "masked", got {self.rows!r}')
        if self.gradient_steps is not None and self.gradient_steps < 1:
            raise ValueError(f"gradient_steps must be at least 1, or None for all, got {self.gradient_steps}")

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
        **cond: Any,
    ) -> Rollout:
        """Draw one path for every row; each state is evaluated once, with a graph if gradients are enabled.

        Args:
            student: any `Denoiser`.
            shape: ``(B, L)``, or give ``x_init``, as in the samplers.
            group_size: consecutive rows in a group; must divide ``B``.
            generator: source of randomness.

        Raises:
            ValueError: if ``group_size`` does not divide the batch.
        """
        canvas = Canvas(
            self.process,
            shape,
            x_init=x_init,
            attention_mask=attention_mask,
            generator=generator,
            device=device,
        )
        if group_size < 1 or canvas.batch % group_size:
            raise ValueError(f"group_size {group_size} does not divide the batch of {canvas.batch} sequences")
        times_KB = self.times(canvas.batch, group_size, canvas.z.device, generator)
        weights = self._gradient_weights(len(times_KB) - 1, generator)
        steps = [
            self._step(canvas, student, index, times_KB[index], times_KB[index + 1], weight, cond)
            for index, weight in enumerate(weights)
        ]
        return Rollout(steps, canvas.movable, group_size, attention_mask, cond)

    def times(self, batch: int, group_size: int, device: torch.device, generator: Generator | None) -> Tensor:
        """Times from 1 to 0, ``[K + 1, B]``, with the number of steps drawn."""
        choice = int(torch.randint(len(self.num_steps), (), generator=generator, device=_place(generator)))
        interior = self.num_steps[choice] - 1
        if self.tau_law is None:
            return torch.linspace(1.0, 0.0, interior + 2, device=device)[:, None].expand(-1, batch)
        repeats = {"group": group_size, "batch": batch, "sample": 1}[self.tau_per]
        draws = batch // repeats
        ends = torch.ones(1, batch, device=device)
        if interior == 0:
            return torch.cat((ends, 0.0 * ends))
        drawn = self.tau_law.sample(interior * draws, device=_place(generator), generator=generator).t
        tau = drawn.view(interior, draws).sort(0, descending=True).values.repeat_interleave(repeats, dim=1)
        return torch.cat((ends, tau.to(device), 0.0 * ends))

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
        cond: dict[str, Any],
    ) -> PathStep:
        masked = canvas.masked()
        reveals = canvas.coins(index, self.process.unmask_probability(t, s)) & masked
        kept = masked if self.rows == "masked" else reveals
        rows = kept.flatten().nonzero().squeeze(1)
        revealed = reveals.flatten()[rows]
        with torch.set_grad_enabled(torch.is_grad_enabled() and gradient_weight > 0.0):
            log_probs_NV = self._log_probs(canvas, student, rows, t, s, cond)
        if log_probs_NV.requires_grad and gradient_weight != 1.0:
            log_probs_NV.register_hook(lambda gradient: gradient_weight * gradient)
        before = canvas.z
        drawn = sample_rows(
            log_probs_NV.detach()[revealed],
            seed=canvas.seed,
            rows_R=rows[revealed],
            step=index,
            mask_token_id=self.process.mask_token_id,
        )
        canvas.write(rows[revealed], drawn.tokens[:, 0], drawn.log_probs[:, 0])
        return PathStep(before, canvas.z, t, s, rows, revealed, log_probs_NV)

    def _log_probs(
        self, canvas: Canvas, student: Denoiser, rows: Tensor, t: Tensor, s: Tensor, cond: dict[str, Any]
    ) -> Tensor:
        if canvas.one_row_stands_for_all(t, s, cond):
            return shared_state_log_probs(self.process, student, canvas.z, t, rows, s=s[:1])
        return self.process.masked_log_probs(canvas.logits(student, rows, t, s, **cond))


def shared_state_log_probs(
    process: MaskedDiffusion, denoiser: Denoiser, z: Tensor, t: Tensor, rows: Tensor, *, s: Tensor | None = None
) -> Tensor:
    """Log-probabilities ``[N, V]`` at flattened positions where all sequences are in one state: evaluated once for all.

    Args:
        process: names the mask.
        denoiser: any `Denoiser`.
        z: int64 ``[B, L]``, all rows equal.
        t: ``[B]``, all equal.
        rows: int64 ``[N]``.
        s: ``[1]``, for denoisers that are told where the step ends.
    """
    length = z.shape[1]
    every = torch.arange(length, device=z.device)
    return process.masked_log_probs(logits_at(denoiser, z[:1], t[:1], every, s=s))[rows % length]


def draw_probe(
    process: MaskedDiffusion,
    step: PathStep,
    movable: Tensor,
    *,
    hidden: float = 0.5,
    generator: Generator | None = None,
) -> Probe:
    """Hide again what a step revealed, until a fraction of at least ``hidden`` of its masked positions is hidden.

    With ``q`` the step's probability of revealing, ``h = max(1 - q, hidden)``: what is still masked stays so, and each
    revealed position is hidden again with probability ``(h - (1 - q)) / q``.

    Args:
        process: mask and schedule.
        step: of a path whose log-probabilities were kept at all masked positions.
        movable: bool ``[B, L]``.
        hidden: least fraction hidden, in ``(0, 1]``; the last step leaves no mask, so 0 would leave nothing to ask.
        generator: source of randomness.

    Raises:
        ValueError: if ``hidden`` is outside ``(0, 1]``, or the path kept only what each step revealed.
    """
    if not 0.0 < hidden <= 1.0:
        raise ValueError(f"hidden must lie in (0, 1], got {hidden}")
    reveal_B = process.unmask_probability(step.t, step.s)
    hidden_B = (1.0 - reveal_B).clamp(min=hidden)
    again_B = ((hidden_B - (1.0 - reveal_B)) / reveal_B.clamp(min=1e-6)).clamp(0.0, 1.0)
    coins = torch.rand(step.z.shape, device=step.z.device, generator=generator) < again_B[:, None]
    was_masked = process.is_masked(step.z) & movable
    if len(step.rows) != int(was_masked.sum()):
        raise ValueError('a probe needs log-probabilities at all masked positions; draw the path with rows="masked"')
    hide = was_masked & (process.is_masked(step.z_next) | coins)
    rows = hide.flatten().nonzero().squeeze(1)
    z = torch.where(hide, process.mask_token_id, step.z_next)
    t = process.time_of_count(hide.sum(1), process.num_movable(z, movable))
    weight = (reveal_B / hidden_B)[rows // z.shape[1]]
    return Probe(z, t, rows, torch.searchsorted(step.rows, rows), weight)


def _place(generator: Generator | None) -> torch.device:
    return generator.device if generator is not None else torch.device("cpu")
