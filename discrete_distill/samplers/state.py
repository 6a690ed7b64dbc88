"""The engine of samplers, student paths and targets of a teacher: sequences that are being drawn.

Shape suffixes: B batch, L length, V vocabulary, N chosen positions, n positions of a chunk, K steps, M candidates.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from .. import draws
from ..checks import check_generator
from ..kernels import STREAM_UNMASK, SampledRows, uniform
from ..process import Denoiser, MaskedDiffusion, ignores_time
from ..process.conditions import check_conditions, take_rows
from ..process.denoiser import LogitsOfPart, check_ids, device_of
from .faults import Faults, check_logits
from .filtering import TokenDistribution
from .inputs import check_rows, checked_first_row, checked_mask, start_of
from .logits import evaluate, guided
from .output import SamplerOutput
from .positions import Positions, padded_positions, positions_at
from .prompts import Frame

Statistic = Callable[[Tensor, SampledRows, slice], Tensor]
"""``statistic(logits [n, V], drawn, part) -> [n]``: a number for each position, taken while its logits are there."""


class Drawn(NamedTuple):
    """Tokens ``[N, M]``, their log-probabilities ``[N, M]`` in nats, and a statistic ``[N]`` if there is one."""

    tokens: Tensor
    log_probs: Tensor
    statistic: Tensor | None


class SamplerState:
    """Tokens, generation mask, seed, random draws, logits and costs of one call.

    Only mask tokens of the start, at real positions of the generation mask, are drawn. All randomness is a function of
    the seed and of a counter: the position in the batch, the step and the stream.

    Args:
        process: names the mask.
        denoiser: any `Denoiser`. Also the arguments of `Sampler.__call__` from ``shape`` to ``first_row``.
        token_distribution: how a token is drawn from logits; the denoiser's own distribution by default.
        cfg_scale: strength of classifier-free guidance; 1 is none.
        chunk_rows: rows of vocabulary logits held at once.
        check: look at all logits in every step.
        static: shapes that do not depend on data, and no waiting for the device.

    Attributes:
        tokens: int64 ``[B, L]``; replaced, never written into, so that earlier states stay as they were.
        generation_mask: bool ``[B, L]``, true at the masks of the start that are to be generated.
        log_probs: fp32 ``[B, L]``, nats, of each token when it was drawn.
        seed: int64 scalar, on the device.
        nfe: calls of the denoiser.
        other_calls: calls of other networks.

    Raises:
        TypeError: if ``x_init`` does not hold int64 ids, a mask is no bool tensor, ``shape`` holds no integers, or a
            keyword argument has a name that the library uses, or an entry for each sequence and is no tensor.
        ValueError: if neither or both of ``shape`` and ``x_init`` are given, there is no sequence or no position,
            shapes or devices do not agree, ids are negative or unknown to the denoiser, ``first_row`` is out of range,
            or guidance has nothing to guide by.

    Examples:
        >>> state = SamplerState(process, teacher, (8, 16), generator=generator)
        >>> state.reveal(state.select(state.masked()), torch.ones(8), torch.zeros(8), step=0)
        >>> int(state.masked().sum()), state.finish(None).nfe
        (0, 1)
    """

    def __init__(
        self,
        process: MaskedDiffusion,
        denoiser: Denoiser,
        shape: tuple[int, int | Frame] | None = None,
        *,
        x_init: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_mask: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        first_row: int = 0,
        token_distribution: TokenDistribution | None = None,
        cfg_scale: float = 1.0,
        chunk_rows: int = 384,
        check: bool = False,
        static: bool = False,
    ) -> None:
        check_conditions(model_kwargs, denoiser, {"attention_mask"})
        check_generator(generator)
        home = device_of(denoiser, generator)
        self.tokens, largest_id = start_of(process.mask_token_id, shape, x_init, device, home)
        self.largest_id = max((largest_id, *process.forbidden_token_ids[-1:]))
        self.attention_mask = checked_mask("attention_mask", attention_mask, self.tokens)
        generation_mask = checked_mask("generation_mask", generation_mask, self.tokens)
        self.first_row = checked_first_row(first_row, *self.tokens.shape)
        check_ids(denoiser, self.largest_id)
        self.process, self.denoiser, self.model_kwargs = process, denoiser, dict(model_kwargs or {})
        check_rows(self.model_kwargs, self.batch)
        if cfg_scale != 1.0 and not self.model_kwargs and x_init is None:
            raise ValueError(
                f"cfg_scale = {cfg_scale} guides by what a denoiser is conditioned on, and here is nothing: pass a "
                "condition in model_kwargs, or a prompt in x_init; or leave cfg_scale at 1"
            )
        self.token_distribution = (
            token_distribution if token_distribution is not None else TokenDistribution(process.mask_token_id)
        )
        self.cfg_scale, self.chunk_rows, self.check, self.static = cfg_scale, chunk_rows, check, static
        self.generation_mask = process.is_masked(self.tokens)
        for mask in (self.attention_mask, generation_mask):
            if mask is not None:
                self.generation_mask = self.generation_mask & mask
        self.given = ~process.is_masked(self.tokens)
        self.log_probs = torch.zeros(self.tokens.shape, dtype=torch.float32, device=self.tokens.device)
        # A generator's own state is not philox: one draw of it names the whole trajectory.
        self.seed = draws.seed(device=self.tokens.device, generator=generator)
        count, self.length = self.tokens.numel(), self.tokens.shape[1]
        self.position_numbers = torch.arange(count, device=self.tokens.device) + self.first_row * self.length
        self.draw_numbers = self.position_numbers
        # All rows are one state until something is written, unless something else distinguishes them.
        self.one_state = x_init is None and self.attention_mask is None and not self.model_kwargs
        self.nfe = self.other_calls = 0
        self.faults = Faults(torch.zeros_like(self.generation_mask), torch.zeros_like(self.generation_mask[:, 0]))

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self.tokens.shape[0]

    def masked(self) -> Tensor:
        """Bool ``[B, L]``: positions still to be drawn."""
        return self.process.is_masked(self.tokens, self.generation_mask)

    def conditions(self) -> dict[str, Any]:
        """Keyword arguments of every network: ``model_kwargs``, and the attention mask where there is one."""
        mask = {} if self.attention_mask is None else {"attention_mask": self.attention_mask}
        return {**mask, **self.model_kwargs}

    def repeated(self, copies: int, model_kwargs: Mapping[str, Any]) -> SamplerState:
        """The state with ``copies`` of each sequence in its place; they share their unmasking draws, and draw their own
        tokens.

        Args:
            copies: of each sequence.
            model_kwargs: of the repeated batch.
        """
        made = self._indexed(torch.arange(self.batch, device=self.tokens.device).repeat_interleave(copies))
        made.model_kwargs, made.first_row = dict(model_kwargs), copies * self.first_row
        first = made.first_row * made.tokens.shape[1]
        made.position_numbers = torch.arange(first, first + made.tokens.numel(), device=self.tokens.device)
        return made

    def part(self, sequences: Tensor) -> SamplerState:
        """The state of some of the sequences, int64 ``[b]``, to be read."""
        made = self._indexed(sequences)
        made.model_kwargs = take_rows(self.model_kwargs, sequences, self.batch)
        return made

    def _indexed(self, sequences: Tensor) -> SamplerState:
        made = copy.copy(self)
        made.faults = self.faults.of(sequences)
        for name in ("tokens", "generation_mask", "given", "log_probs", "attention_mask"):
            value = getattr(self, name)
            setattr(made, name, value if value is None else value[sequences])
        for name in ("position_numbers", "draw_numbers"):
            setattr(made, name, getattr(self, name).view(self.tokens.shape)[sequences].flatten())
        return made

    def unmask_draws(self, step: int, probability: Tensor) -> Tensor:
        """Bool ``[B, L]``: which positions would be revealed, with probability ``[B]`` or ``[B, L]``; they depend on
        the logits only if the probability does."""
        draw = self.uniform(step, STREAM_UNMASK)
        return draw < (probability if probability.dim() == 2 else probability[:, None])

    def unmask_draws_of_steps(self, first: int, probabilities: Tensor) -> Tensor:
        """Bool ``[K, B, L]``: unmasking draws of ``K`` steps from ``first`` on; probabilities ``[K]`` or ``[K, B]``."""
        count = len(probabilities)
        steps = torch.arange(first, first + count, device=self.tokens.device)
        draw = uniform(self.seed, row=self.draw_numbers, step=steps[:, None], stream=STREAM_UNMASK, dtype=torch.float32)
        return draw.view(count, *self.tokens.shape) < probabilities.view(count, -1, 1)

    def uniform(self, step: int, stream: int) -> Tensor:
        """Uniform numbers in (0, 1), fp32 ``[B, L]``, one for every position, step and stream."""
        draw = uniform(self.seed, row=self.draw_numbers, step=step, stream=stream, dtype=torch.float32)
        return draw.view_as(self.tokens)

    def select(self, flags_BL: Tensor, capacity: int | None = None) -> Positions:
        """The flagged positions; in a static run padded to ``capacity``, by default to all positions."""
        if self.static:
            return padded_positions(flags_BL, flags_BL.numel() if capacity is None else capacity)
        return positions_at(flags_BL)

    def logits(
        self, positions: Positions, t: Tensor, s: Tensor, *, one_time: bool = True, share_head: bool = False
    ) -> LogitsOfPart:
        """Raw (guided) logits of ``positions``, -inf at forbidden ids, in parts: ``logits(slice) -> [n, V]``. Calls the
        denoiser here and now, on the sequences that hold the positions; while all are one state, on the first.

        Args:
            positions: whose logits.
            t: ``[B]``.
            s: ``[B]``, where the step ends.
            one_time: all sequences are at the same times.
            share_head: see `evaluate`.
        """
        logits_of = self._guided_logits(positions, t, s, one_time=one_time, share_head=share_head)
        return lambda part: self.process.forbid(logits_of(part))

    def _guided_logits(
        self, positions: Positions, t: Tensor, s: Tensor, *, one_time: bool, share_head: bool
    ) -> LogitsOfPart:
        if self.one_state and (one_time or ignores_time(self.denoiser)):
            return self._call(self.tokens, t, s, positions.index, {}, one_state=True, share_head=share_head)
        chosen = positions.sequences
        if chosen is not None and not len(chosen):
            chosen = chosen.new_zeros(1)  # One sequence is run and none of it read: many networks take no empty batch.
        x_t, t, s = (each if chosen is None else each[chosen] for each in (self.tokens, t, s))
        conditional = self._call(x_t, t, s, positions.compact, take_rows(self.conditions(), chosen, self.batch))
        if self.cfg_scale == 1.0:
            return conditional
        if not self.model_kwargs:
            given = self.given if chosen is None else self.given[chosen]
            x_t = torch.where(given, self.process.mask_token_id, x_t)
        mask = {} if self.attention_mask is None else {"attention_mask": self.attention_mask}
        unconditional = self._call(x_t, t, s, positions.compact, take_rows(mask, chosen, self.batch))
        return lambda part: guided(conditional(part), unconditional(part), self.cfg_scale)

    def _call(
        self, x_t: Tensor, t: Tensor, s: Tensor, places: Tensor, model_kwargs: dict[str, Any], **options: bool
    ) -> LogitsOfPart:
        self.nfe += 1
        return evaluate(
            self.denoiser, x_t, t, places, s=s, model_kwargs=model_kwargs, largest_id=self.largest_id, **options
        )

    def check_logits(self, logits_nV: Tensor, index: Tensor, step: int, *, active: Tensor | None = None) -> None:
        """Raise ValueError at a row of logits ``[n, V]`` without a token to draw; waits for the device."""
        numbers = self.position_numbers[index]
        check_logits(self.token_distribution, logits_nV, numbers, self.length, step, active)

    def draw_tokens(self, logits_nV: Tensor, index: Tensor, step: int, **options: Any) -> SampledRows:
        """Tokens from logits ``[n, V]`` at flattened positions, int64 ``[n]``; options as in
        `TokenDistribution.draw`."""
        return self.token_distribution.draw(
            logits_nV, seed=self.seed, positions=self.position_numbers[index], step=step, **options
        )

    def draw(
        self,
        positions: Positions,
        t: Tensor,
        s: Tensor,
        step: int,
        *,
        num_candidates: int = 1,
        greedy: bool = False,
        statistic: Statistic | None = None,
        return_entropy: bool = False,
        one_time: bool = True,
    ) -> Drawn:
        """Tokens for ``positions``, a chunk at a time; nothing is written.

        Args:
            positions: one or more.
            t: ``[B]``.
            s: ``[B]``.
            step: number of the step, part of the counters of the draws.
            num_candidates: M.
            greedy: the most likely token in place of a draw.
            statistic: computed from each chunk's logits.
            return_entropy: whether the statistic needs the entropy.
            one_time: see `logits`.
        """
        logits_of = self.logits(positions, t, s, one_time=one_time)
        parts, statistics = [], []
        for start in range(0, len(positions.index), self.chunk_rows):
            part = slice(start, start + self.chunk_rows)
            active = None if positions.active is None else positions.active[part]
            logits_nV, index = logits_of(part), positions.index[part]
            if self.check:
                self.check_logits(logits_nV, index, step, active=active)
            options: dict[str, Any] = {"active": active, "return_entropy": return_entropy}
            if greedy:
                drawn = self.token_distribution.most_likely(logits_nV, **options)
            else:
                drawn = self.draw_tokens(logits_nV, index, step, num_candidates=num_candidates, **options)
            parts.append(drawn)
            if statistic is not None:
                statistics.append(statistic(logits_nV, drawn, part))
        tokens, log_probs = torch.cat([part.tokens for part in parts]), torch.cat([part.log_probs for part in parts])
        bad_BL = self.scatter(positions, log_probs.isnan().any(1), False)
        self.faults = self.faults.with_positions(bad_BL & self.masked())
        return Drawn(tokens, log_probs, torch.cat(statistics) if statistics else None)

    def reveal(
        self, positions: Positions, t: Tensor, s: Tensor, step: int, *, greedy: bool = False, one_time: bool = True
    ) -> None:
        """Draw ``positions`` and write them; no positions, no call."""
        if positions:
            drawn = self.draw(positions, t, s, step, greedy=greedy, one_time=one_time)
            self.write(positions.index, drawn.tokens[:, 0], drawn.log_probs[:, 0], active=positions.active)

    def tokens_with(self, index: Tensor, tokens: Tensor) -> Tensor:
        """The tokens ``[B, L]`` with others ``[N]`` at flattened positions; a token of -1 (there was nothing to draw
        from) is a mask."""
        tokens = torch.where(tokens < 0, self.process.mask_token_id, tokens)
        return self.tokens.flatten().index_copy(0, index, tokens).view_as(self.tokens)

    def write(self, index: Tensor, tokens: Tensor, log_probs: Tensor, *, active: Tensor | None = None) -> None:
        """Put tokens ``[N]`` and their log-probabilities at flattened positions; inactive positions keep theirs."""
        if active is not None:
            tokens = torch.where(active, tokens, self.tokens.flatten()[index])
            log_probs = torch.where(active, log_probs, self.log_probs.flatten()[index])
        self.tokens = self.tokens_with(index, tokens)
        self.log_probs = self.log_probs.flatten().index_copy(0, index, log_probs).view_as(self.log_probs)
        self.one_state = self.one_state and not len(index)

    def write_where(self, chosen_BL: Tensor, positions: Positions, drawn: Drawn) -> None:
        """Write what was drawn at ``chosen_BL`` only, a part of ``positions``."""
        tokens_BL = self.scatter(positions, drawn.tokens[:, 0], -1)
        log_probs_BL = self.scatter(positions, drawn.log_probs[:, 0], 0.0)
        tokens_BL = torch.where(tokens_BL < 0, self.process.mask_token_id, tokens_BL)
        self.tokens = torch.where(chosen_BL, tokens_BL, self.tokens)
        self.log_probs = torch.where(chosen_BL, log_probs_BL, self.log_probs)
        self.one_state = False

    def mask_again(self, chosen_BL: Tensor) -> None:
        """Mask written tokens again."""
        self.tokens = torch.where(chosen_BL, self.process.mask_token_id, self.tokens)
        self.log_probs = torch.where(chosen_BL, 0.0, self.log_probs)

    def scatter(self, positions: Positions, values: Tensor, blank: float | bool) -> Tensor:
        """``[B, L]`` with ``values`` ``[N]`` at active positions and ``blank`` elsewhere."""
        if positions.active is not None:
            values = torch.where(positions.active, values, blank)
        flat = torch.full((self.tokens.numel(),), blank, dtype=values.dtype, device=values.device)
        return flat.index_copy(0, positions.index, values).view_as(self.tokens)

    def note_scores(self, bad_B: Tensor, step: int) -> None:
        """Note sequences whose scores, by a discriminator, a reward or a planner, were no numbers.

        Raises:
            ValueError: at once if ``check``, which waits for the device; else when the sampler has ended.
        """
        self.faults = self.faults.with_scores(bad_B)
        if self.check:
            self.faults.raise_scores(self.first_row, f"step {step}, ")

    def finish(self, history: list[Tensor] | None) -> SamplerOutput:
        """What the call returns.

        Raises:
            ValueError: if somewhere there was nothing to draw from, or scores chose nothing; looked up once, here.
        """
        self.faults.with_positions(self.log_probs.isnan()).raise_positions(self.first_row)
        if self.other_calls:
            self.faults.raise_scores(self.first_row)
        evaluations, num_tokens = self.nfe + self.other_calls, self.generation_mask.sum(1)
        return SamplerOutput(self.tokens, self.nfe, evaluations, self.log_probs, num_tokens, history)
