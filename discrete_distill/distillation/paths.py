"""Intermediate-state matching: student paths ``m -> z_tau -> ... -> x`` that carry the student's own probabilities.

The log-probability of a sample may be replaced by that of the path it was drawn along, ``sum_j log P(z_{j+1} | z_j)``:
the score function has the same expectation, and the student is trained in the states that a few-step sampler meets
("score decomposition" of DiDi-Instruct, arXiv 2509.25035). Unmasking draws do not depend on the student, so only
positions that a step reveals carry a gradient in that step.

Shape suffixes: B batch, L length, V vocabulary, N chosen positions, K steps.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor

from .. import draws
from ..checks import check_choice, check_count, check_counts, check_number
from ..kernels import token_losses
from ..process import Denoiser, MaskedDiffusion, TimeDistribution
from ..samplers.positions import Positions
from ..samplers.prompts import Frame
from ..samplers.state import SamplerState
from ..samplers.strided import Stride
from .end_of_sequence import EndOfSequence, EndPolicy
from .groups import first_of_each, first_of_each_kwarg
from .path_plan import (
    BY_CERTAINTY,
    PathOrder,
    PlannedStep,
    check_path_order,
    most_certain,
    plan_by_draws,
    plan_by_order,
    reveal_counts,
)
from .rollout import Rollout, TrajectoryStep, repeated_positions
from .step_evaluation import StepEvaluation


@dataclass(frozen=True)
class IntermediateStateMatcher:
    """Draws student paths.

    The student is read in evaluation mode, whatever mode it is in: with dropout a path would be drawn from a
    distribution whose log-probability cannot be computed again.

    Args:
        process: mask, schedule and forbidden ids.
        num_steps: numbers of steps; one of them is drawn for each batch. One step draws the sample at once; two steps
            are the paper's ``m -> z_tau -> x``; a distribution over several keeps one student good at all of them.
        time_distribution: distribution of the intermediate times; an evenly spaced grid (that of the samplers) if None.
        times_per: whether intermediate times are shared by a "group" (default) or a "batch", or drawn per "sample".
        positions: which logits a step keeps: of "revealed" positions, or of all "masked" ones.
        gradient_steps: maximum number ``m`` of steps of a path that keep a graph, drawn uniformly among the K; their
            gradients weigh ``K / m``, so the expected gradient stays. Less memory and time, more variance. All if None.
        branching: one step of the path, drawn uniformly, keeps a graph (of weight ``K``); the rows of a group share the
            path up to it, and all unmasking draws, and part at its draw. What became of each draw is so compared in
            equal states: unbiased, with less variance, and the shared part is evaluated once for the group (vine, arXiv
            1502.05477).
        temperature: of the tokens, as in the samplers; log-probabilities are those of the tempered distribution.
        order: how the positions of a step are chosen. "random" is the reverse process. "strided" reveals masks that lie
            ``K`` apart, as `AncestralSampler` with this order does. By "margin" or "entropy" (see
            `ConfidenceSampler`) a step reveals a fixed number of positions, those of which the student is surest;
            which they are depends on its logits alone, so the probability of the path is the product over its tokens.
            The gradient leaves out that the choice depends on the weights. Logits of all masked positions are computed.
        end_token_id: the end-of-sequence token; None if there is none.
        end_policy: what becomes of positions behind the first generated end. "padding": they are drawn, and are in no
            loss, reward or metric (`Rollout.loss_mask`); "stop": in addition, masks behind an end that was drawn are
            filled with it at once, with probability 1; "forbidden": no end is drawn.

    Raises:
        TypeError: if the temperature or an id is of a wrong type.
        ValueError: if a number of steps is below 1, or there is none, a name is unknown, the temperature is not
            positive, ``order`` depends on drawn tokens ("confidence": the probability of such a path is a sum over the
            tokens that were drawn and thrown away), or ``branching`` is combined with an order, with
            ``gradient_steps`` or with times of each sample.

    Examples:
        >>> matcher = IntermediateStateMatcher(process, num_steps=(2, 4))  # Half of the batches take four steps.
        >>> rollout = matcher(student, (8, 16), group_size=4, generator=generator)
        >>> rollout.log_prob()[0].item()  # 16 log(1/8)
        -33.27...
    """

    process: MaskedDiffusion
    num_steps: Sequence[int] = (2,)
    time_distribution: TimeDistribution | None = None
    times_per: Literal["group", "batch", "sample"] = "group"
    positions: Literal["revealed", "masked"] = "revealed"
    gradient_steps: int | None = None
    branching: bool = False
    temperature: float = 1.0
    order: PathOrder = "random"
    end_token_id: int | None = None
    end_policy: EndPolicy = "padding"

    def __post_init__(self) -> None:
        check_counts("num_steps", self.num_steps)
        if self.times_per not in ("group", "batch", "sample"):
            raise ValueError(f'times_per is "group", "batch" or "sample", got {self.times_per!r}')
        if self.positions not in ("revealed", "masked"):
            raise ValueError(f'positions is "revealed" or "masked", got {self.positions!r}')
        if self.gradient_steps is not None and self.gradient_steps < 1:
            raise ValueError(f"gradient_steps must be at least 1, or None for all, got {self.gradient_steps}")
        if self.branching and self.gradient_steps is not None:
            raise ValueError(
                f"a branching path keeps the graph of one step; leave out gradient_steps = {self.gradient_steps}"
            )
        if self.branching and self.times_per == "sample":
            raise ValueError('rows of a group share a branching path and its times; take times_per="group" or "batch"')
        check_number("temperature", self.temperature, exclusive_minimum=0.0)
        check_path_order(self.order, branching=self.branching)
        check_choice("end_policy", self.end_policy, get_args(EndPolicy))
        if self.end_token_id is not None and EndOfSequence(self.end_token_id, self.end_policy).policy == "forbidden":
            forbidden = (*self.process.forbidden_token_ids, self.end_token_id)
            object.__setattr__(self, "process", replace(self.process, forbidden_token_ids=forbidden))

    @property
    def _end(self) -> EndOfSequence | None:
        """The end behind which nothing counts."""
        if self.end_token_id is None or self.end_policy == "forbidden":
            return None
        return EndOfSequence(self.end_token_id, self.end_policy)

    def __call__(
        self,
        student: Denoiser,
        shape: tuple[int, int | Frame] | None = None,
        *,
        group_size: int = 1,
        x_init: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        tokens: Tensor | None = None,
        num_steps: int | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        keep_logits: bool | None = None,
    ) -> Rollout:
        """Draw one path for every row; each state is evaluated once, with a graph if gradients are enabled.

        Args:
            student: any `Denoiser`.
            shape: ``(B, L)`` or ``(B, Frame)``, or give ``x_init``, as in the samplers.
            group_size: consecutive rows in a group; must divide ``B``.
            x_init: int64 ``[B, L]``, as in the samplers.
            attention_mask: bool ``[B, L]``, as in the samplers.
            generator: source of randomness.
            device: of unconditional paths.
            tokens: samples of an earlier call, int64 ``[B, L]``. Given them and a generator in the state of that call,
                the same path is walked again, whatever the student now makes probable (with an order, only if the
                student is the same); drawn if None. `Rollout.log_prob` evaluates any network on a stored path.
            num_steps: steps of these paths; one of the matcher's is drawn if None. Processes that must call a network
                equally often are given the same.
            model_kwargs: passed to all networks by keyword.
            keep_logits: whether steps keep their logits, with their graph; by default where gradients are enabled, or
                ``positions="masked"`` needs more of them than the path. Without them a path holds the
                log-probabilities of its tokens, and a step holds the logits of a few hundred positions at a time.

        Raises:
            TypeError: if ``num_steps`` is no whole number, ``tokens`` does not hold int64, or as in the samplers.
            ValueError: if ``num_steps`` is below 1, ``group_size`` does not divide the batch, the batch is empty,
                ``tokens`` has another shape, or the student's logits leave nothing to draw from: names step, sequence
                and position.

        Examples:
            >>> matcher = IntermediateStateMatcher(process, num_steps=(4,))
            >>> rollout = matcher(student, (8, 16), group_size=4, generator=torch.Generator().manual_seed(0))
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
            model_kwargs=first_of_each_kwarg(model_kwargs, batch, copies),
            generator=generator,
            device=device,
        )
        _check_tokens(tokens, (batch, start.tokens.shape[1]))
        times_KB, drawn_time = self._draw_times(batch, group_size, start.tokens.device, generator, num_steps)
        conditions = dict(model_kwargs or {})
        keep = torch.is_grad_enabled() or self.positions == "masked" if keep_logits is None else keep_logits
        stride = Stride(len(times_KB) - 1, start=1.0) if self.order == "strided" else None
        if self.branching:
            steps, state = self._branching_path(start, times_KB, generator, tokens, conditions, keep, stride)
        else:
            weights = self._gradient_weights(len(times_KB) - 1, generator)
            steps, state = self._walk(start, times_KB, tokens, weights, keep, stride), start
        rollout = Rollout(
            steps, state.generation_mask, group_size, attention_mask, conditions, drawn_time, self._end, self.branching
        )
        rollout.check_log_probs(state.log_probs)
        return rollout

    def _branching_path(
        self,
        trunk: SamplerState,
        times_KB: Tensor,
        generator: Generator | None,
        tokens: Tensor | None,
        model_kwargs: Mapping[str, Any],
        keep: bool,
        stride: Stride | None,
    ) -> tuple[list[TrajectoryStep], SamplerState]:
        """The steps of all rows, and their state; before the branch a step is taken once for its group."""
        copies = times_KB.shape[1] // trunk.batch
        num_steps = len(times_KB) - 1
        branch = int(draws.randint(num_steps, (), device="cpu", generator=generator))
        trunk_times = times_KB[: branch + 2, ::copies]
        trunk_tokens = None if tokens is None else tokens[::copies]
        plan = self._plan(trunk, trunk_times, 0, keep, stride)
        walked = self._walk(trunk, trunk_times[:-1], trunk_tokens, [0.0] * branch, keep, stride, plan=plan)
        shared = plan[branch]
        if self.end_policy == "stop":
            shared = self._plan(trunk, trunk_times[branch:], branch, keep, stride)[0]
        state = trunk.repeated(copies, model_kwargs)
        positions, place = repeated_positions(shared.positions.index, trunk.tokens.shape[1], copies)
        every = torch.arange(len(positions), device=positions.device) if self._positions(keep) == "revealed" else None
        planned = PlannedStep(Positions(positions, None, positions), shared.revealed[place], every, shared.one_time)
        t, s = trunk_times[branch], trunk_times[branch + 1]
        evaluation = StepEvaluation(
            copy.copy(trunk), shared.positions, t, s, shared.one_time, self.temperature, repeats=place
        )  # fmt: skip
        at = times_KB[branch], times_KB[branch + 1]
        steps = [step.repeated(copies) for step in walked]
        steps.append(self._step(state, branch, at, float(num_steps), planned, evaluation, tokens, keep))
        weights = [0.0] * (num_steps - branch - 1)
        rest = self._walk(state, times_KB[branch + 1 :], tokens, weights, keep, stride, first=branch + 1)
        return [*steps, *rest], state

    def _positions(self, keep: bool) -> Literal["revealed", "masked"]:
        """Logits of positions that a step does not reveal are computed where they are kept."""
        return self.positions if keep else "revealed"

    def _plan(
        self, state: SamplerState, times_KB: Tensor, first: int, keep: bool, stride: Stride | None
    ) -> list[PlannedStep]:
        return plan_by_draws(state, times_KB, first, self._positions(keep), stride)

    def _walk(
        self,
        state: SamplerState,
        times_KB: Tensor,
        tokens: Tensor | None,
        weights: list[float],
        keep: bool,
        stride: Stride | None,
        first: int = 0,
        plan: list[PlannedStep] | None = None,
    ) -> list[TrajectoryStep]:
        """Take all steps between the times, from number ``first`` on."""
        by_order = self.order in BY_CERTAINTY
        # What a step reveals depends on tokens where an end or an order decides, and then it is looked up in each.
        by_state = by_order or (self._end is not None and self.end_policy == "stop")
        counts_KB = reveal_counts(self.process, times_KB, state.masked().sum(1)) if by_order else None
        if plan is None and not by_state:
            plan = self._plan(state, times_KB, first, keep, stride)
        steps = []
        for index, weight in enumerate(weights):
            times_2B = times_KB[index : index + 2]
            if counts_KB is not None:
                planned = plan_by_order(state, counts_KB[index], times_2B)
            elif by_state or plan is None:
                planned = self._plan(state, times_2B, first + index, keep, stride)[0]
            else:
                planned = plan[index]
            t, s = times_2B
            # Logits that decide the order, or that rows of a group share, are held together.
            chunk_rows = None if keep or by_order or self.branching else state.chunk_rows
            evaluation = StepEvaluation(
                copy.copy(state), planned.positions, t, s, planned.one_time, self.temperature, chunk_rows
            )  # fmt: skip
            steps.append(self._step(state, first + index, (t, s), weight, planned, evaluation, tokens, keep))
        return steps

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
        interior = choices[int(draws.randint(len(choices), (), device="cpu", generator=generator))] - 1
        if self.time_distribution is None:
            return torch.linspace(1.0, 0.0, interior + 2, device=device)[:, None].expand(-1, batch), None
        repeats = {"group": group_size, "batch": batch, "sample": 1}[self.times_per]
        count = batch // repeats
        ends = torch.ones(1, batch, device=device)
        if interior == 0:
            return torch.cat((ends, 0.0 * ends)), None
        drawn = self.time_distribution.sample(interior * count, device=device, generator=generator).t
        tau = drawn.view(interior, count).repeat_interleave(repeats, dim=1)
        return torch.cat((ends, tau.sort(0, descending=True).values, 0.0 * ends)), tau[0]

    def _gradient_weights(self, num_steps: int, generator: Generator | None) -> list[float]:
        """Weight of each step's gradient: 0 for a step without a graph."""
        kept = self.gradient_steps
        if kept is None or kept >= num_steps:
            return [1.0] * num_steps
        order = draws.randperm(num_steps, device="cpu", generator=generator).tolist()
        return [num_steps / kept if place < kept else 0.0 for place in order]

    def _step(
        self,
        state: SamplerState,
        index: int,
        times: tuple[Tensor, Tensor],
        gradient_weight: float,
        planned: PlannedStep,
        evaluation: StepEvaluation,
        tokens: Tensor | None,
        keep: bool,
    ) -> TrajectoryStep:
        """Evaluate the student, draw what the step reveals, and write it into the state."""
        x_t, positions = state.tokens, planned.positions
        revealed, place, logits_NV, drawn = planned.revealed, planned.place, None, []
        with torch.set_grad_enabled(torch.is_grad_enabled() and keep and gradient_weight > 0.0):
            logits_of, parts = evaluation.logits(state.denoiser), evaluation.parts()
            for part in parts:
                logits_NV = logits_of(part)
                part_positions, chosen = positions.index[part], logits_NV.detach()
                if planned.count_B is not None:
                    revealed = most_certain(self.order, state, chosen, positions, planned.count_B)
                    place = revealed.nonzero().squeeze(1)
                if place is not None and len(place) < len(positions.index):
                    part_positions, chosen = part_positions[place], chosen[place]
                elif place is None and self.positions == "masked":
                    part_positions, chosen = part_positions[revealed], chosen[revealed]
                drawn.append((part_positions, *self._tokens(state, chosen, part_positions, index, tokens, keep)))
        positions_R, tokens_R, log_prob_R = (torch.cat(each) for each in zip(*drawn, strict=True))
        assert logits_NV is not None
        if logits_NV.requires_grad and gradient_weight != 1.0:
            logits_NV.register_hook(lambda gradient: gradient_weight * gradient)
        state.write(positions_R, tokens_R, log_prob_R.to(state.log_probs.dtype))
        if self._end is not None and self.end_policy == "stop":
            behind = self._end.behind(state.tokens, state.generation_mask) & state.masked()
            state.tokens = torch.where(behind, self._end.token_id, state.tokens)
        return TrajectoryStep(
            x_t, state.tokens, *times, positions.index, revealed, logits_NV if keep else logits_NV[:0].clone(),
            self.process.mask_token_id, place,
            has_all_masked=self._positions(keep) == "masked" and planned.count_B is None,
            log_prob_R=None if keep else log_prob_R, evaluation=evaluation,
        )  # fmt: skip

    def _tokens(
        self,
        state: SamplerState,
        logits_RV: Tensor,
        positions_R: Tensor,
        index: int,
        tokens: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        """Tokens, drawn or given, and their log-probabilities; those that are stored are computed as those that a
        network computes later, so that they agree to the last bit."""
        if tokens is not None:
            tokens_R = tokens.flatten()[positions_R]
        else:
            drawn = state.draw_tokens(logits_RV, positions_R, index)
            tokens_R = drawn.tokens[:, 0]
            if keep:
                return tokens_R, drawn.log_probs[:, 0]
        return tokens_R, token_losses(logits_RV, None, tokens_R, mask_token_id=self.process.mask_token_id).log_prob


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
