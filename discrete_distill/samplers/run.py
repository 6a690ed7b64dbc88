"""One call of a sampler: the canvas, the denoiser as it is asked, and what that has cost so far.

Shape suffixes: B batch, L length, V vocabulary, N rows, n rows of a chunk, M candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..canvas import Canvas, check_rows, take_rows
from ..kernels import SampledRows
from ..process import Denoiser, ignores_time, logits_in_parts
from ..process.denoiser import LogitsOfPart
from .filtering import TokenLaw
from .output import SamplerOutput
from .rows import Rows, padded_rows, rows_at

Statistic = Callable[[Tensor, SampledRows, slice], Tensor]
"""``statistic(logits [n, V], drawn, part) -> [n]``: a number for each row, taken while its logits are there."""


class Drawn(NamedTuple):
    """Tokens ``[N, M]``, their log-probabilities ``[N, M]`` in nats, and a statistic ``[N]`` if one was asked for."""

    tokens: Tensor
    log_probs: Tensor
    statistic: Tensor | None


class Run:
    """Asks the denoiser about rows of the canvas, draws them, writes them, and counts.

    Args:
        canvas: sequences under construction.
        denoiser: any `Denoiser`.
        law: how a token is drawn from logits.
        cond: what the denoiser is passed beside tokens and times.
        cfg_scale: strength of guidance; 1 is none.
        chunk_rows: rows of vocabulary logits held at once.
        check: look at all logits in every step.
        static: shapes that do not depend on data, and no waiting for the device.

    Raises:
        TypeError: if a condition has an entry for each sequence and is no tensor.
        ValueError: if guidance has nothing to guide by.
    """

    def __init__(
        self,
        canvas: Canvas,
        denoiser: Denoiser,
        law: TokenLaw,
        cond: dict[str, Any],
        *,
        cfg_scale: float = 1.0,
        chunk_rows: int = 384,
        check: bool = False,
        static: bool = False,
    ) -> None:
        self.canvas, self.denoiser, self.law, self.cond = canvas, denoiser, law, cond
        self.cfg_scale, self.chunk_rows, self.check, self.static = cfg_scale, chunk_rows, check, static
        check_rows(cond, canvas.batch)
        self.nfe = self.other_calls = 0
        # Rows without a token to draw, and sequences whose scores were no numbers: looked up at the end, or if `check`.
        self.bad_rows = torch.zeros_like(canvas.movable)
        self.bad_scores = torch.zeros_like(canvas.movable[:, 0])
        self.given = ~canvas.movable & ~canvas.process.is_masked(canvas.z)
        if cfg_scale != 1.0 and not cond and canvas.unconditional:
            raise ValueError(
                f"cfg_scale = {cfg_scale} guides by what a denoiser is conditioned on, and here is nothing: pass a "
                "condition by keyword, or a prompt in x_init; or leave cfg_scale at 1"
            )
        # All sequences are the same until something is written, unless something else tells them apart.
        self.all_alike = canvas.unconditional and canvas.attention_mask is None and not cond

    def conditions(self) -> dict[str, Any]:
        """What every network is passed beside tokens and times: the conditions, and the attention mask, if any."""
        return conditions_of(self.canvas, self.cond)

    def select(self, flags_BL: Tensor, capacity: int | None = None) -> Rows:
        """The flagged rows; in a static run padded to ``capacity``, by default to all rows."""
        if self.static:
            return padded_rows(flags_BL, flags_BL.numel() if capacity is None else capacity)
        return rows_at(flags_BL)

    def logits(self, rows: Rows, t: Tensor, s: Tensor, *, one_time: bool = True) -> LogitsOfPart:
        """Raw (guided) logits of ``rows``, in parts: ``logits(slice) -> [n, V]``. Calls the denoiser here and now.

        Args:
            rows: what is asked.
            t: ``[B]``.
            s: ``[B]``, where the step ends.
            one_time: all sequences are at the same time. While they are all mask, one then stands for all.
        """
        canvas, length = self.canvas, self.canvas.z.shape[1]
        if self.all_alike and (one_time or ignores_time(self.denoiser)):
            return self._call(canvas.z[:1], t[:1], s[:1], rows.index % length, {})
        chosen = rows.sequences
        z, t, s = (each if chosen is None else each[chosen] for each in (canvas.z, t, s))
        mask = {} if canvas.attention_mask is None else {"attention_mask": canvas.attention_mask}
        mask, cond = (self._of_sequences(each, chosen) for each in (mask, self.cond))
        conditional = self._call(z, t, s, rows.compact, {**mask, **cond})
        if self.cfg_scale == 1.0:
            return conditional
        if not cond:
            given = self.given if chosen is None else self.given[chosen]
            z = torch.where(given, canvas.process.mask_token_id, z)
        unconditional = self._call(z, t, s, rows.compact, mask)
        return lambda part: guided(conditional(part), unconditional(part), self.cfg_scale)

    def _of_sequences(self, cond: dict[str, Any], chosen: Tensor | None) -> dict[str, Any]:
        if chosen is None:
            return cond
        return {name: take_rows(value, chosen, self.canvas.batch) for name, value in cond.items()}

    def _call(self, x: Tensor, t: Tensor, s: Tensor, places: Tensor, cond: dict[str, Any]) -> LogitsOfPart:
        """One call of the denoiser; its head, if it has one, runs on the rows of a part when they are asked for."""
        self.nfe += 1
        largest_id = self.canvas.largest_id
        return logits_in_parts(self.denoiser, x, t, places, s=s, cond=cond, largest_id=largest_id)

    def draw(
        self,
        rows: Rows,
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
        """Tokens for ``rows``, a chunk at a time; nothing is written.

        Args:
            rows: one or more.
            t: ``[B]``.
            s: ``[B]``.
            step: number of the step, part of the counters of the draws.
            num_candidates: M.
            greedy: the likeliest token in place of a draw.
            statistic: computed from each chunk's logits.
            return_entropy: whether the statistic needs the entropy.
            one_time: see `logits`.
        """
        logits_of = self.logits(rows, t, s, one_time=one_time)
        numbers = self.canvas.row_numbers[rows.index]
        parts, statistics = [], []
        for start in range(0, len(rows.index), self.chunk_rows):
            part = slice(start, start + self.chunk_rows)
            active = None if rows.active is None else rows.active[part]
            logits_nV = logits_of(part)
            if self.check:
                self.check_logits(logits_nV, rows.index[part], active, step)
            if greedy:
                drawn = self.law.likeliest(logits_nV, active=active, return_entropy=return_entropy)
            else:
                drawn = self.law.draw(
                    logits_nV,
                    seed=self.canvas.seed,
                    rows=numbers[part],
                    step=step,
                    num_candidates=num_candidates,
                    active=active,
                    return_entropy=return_entropy,
                )
            parts.append(drawn)
            if statistic is not None:
                statistics.append(statistic(logits_nV, drawn, part))
        tokens, log_probs = torch.cat([part.tokens for part in parts]), torch.cat([part.log_probs for part in parts])
        bad_BL = self.on_canvas(rows, log_probs.isnan().any(1), False)
        self.bad_rows = self.bad_rows | (bad_BL & self.canvas.masked())
        return Drawn(tokens, log_probs, torch.cat(statistics) if statistics else None)

    def reveal(
        self, rows: Rows, t: Tensor, s: Tensor, step: int, *, greedy: bool = False, one_time: bool = True
    ) -> None:
        """Draw ``rows`` and write them; no rows, no call."""
        if rows:
            drawn = self.draw(rows, t, s, step, greedy=greedy, one_time=one_time)
            self.write(rows, drawn.tokens[:, 0], drawn.log_probs[:, 0])

    def write(self, rows: Rows, tokens: Tensor, log_probs: Tensor) -> None:
        """Put tokens ``[N]`` on the canvas; padding writes nothing."""
        if rows.active is not None:
            tokens = torch.where(rows.active, tokens, self.canvas.z.flatten()[rows.index])
            log_probs = torch.where(rows.active, log_probs, self.canvas.log_probs.flatten()[rows.index])
        self.canvas.write(rows.index, tokens, log_probs)
        self.all_alike = False

    def on_canvas(self, rows: Rows, values: Tensor, blank: float | bool) -> Tensor:
        """``[B, L]`` with ``values`` ``[N]`` at active rows and ``blank`` elsewhere."""
        if rows.active is not None:
            values = torch.where(rows.active, values, blank)
        flat = torch.full((self.canvas.z.numel(),), blank, dtype=values.dtype, device=values.device)
        return flat.index_copy(0, rows.index, values).view_as(self.canvas.z)

    def write_where(self, chosen_BL: Tensor, rows: Rows, drawn: Drawn) -> None:
        """Write what was drawn at ``chosen_BL`` only, a part of ``rows``."""
        canvas = self.canvas
        tokens_BL = self.on_canvas(rows, drawn.tokens[:, 0], -1)
        log_probs_BL = self.on_canvas(rows, drawn.log_probs[:, 0], 0.0)
        tokens_BL = torch.where(tokens_BL < 0, canvas.process.mask_token_id, tokens_BL)
        canvas.z = torch.where(chosen_BL, tokens_BL, canvas.z)
        canvas.log_probs = torch.where(chosen_BL, log_probs_BL, canvas.log_probs)
        self.all_alike = False

    def mask_again(self, chosen_BL: Tensor) -> None:
        """Hide written tokens again."""
        canvas = self.canvas
        canvas.z = torch.where(chosen_BL, canvas.process.mask_token_id, canvas.z)
        canvas.log_probs = torch.where(chosen_BL, 0.0, canvas.log_probs)

    def check_logits(self, logits_nV: Tensor, index: Tensor, active: Tensor | None, step: int) -> None:
        """Raise ValueError if there is a row of logits ``[n, V]``, at flattened positions ``index``, without a token to
        draw; waits for the device."""
        words_nV = self.law.without_mask(self.law.restrict(logits_nV))
        reasons = {
            "are NaN": words_nV.isnan().any(1),
            "are +inf": words_nV.isposinf().any(1),
            "are all -inf": words_nV.isneginf().all(1),
        }
        for reason, bad in reasons.items():
            bad = bad if active is None else bad & active
            if bool(bad.any()):
                sequence, position = self._place(int(index[bad.nonzero()[0, 0]]))
                raise ValueError(
                    f"step {step}, sequence {sequence}, position {position}: logits of the denoiser {reason} "
                    "(the mask's own aside), so there is no token to draw"
                )

    def note_bad_scores(self, bad_B: Tensor, step: int) -> None:
        """Remember sequences whose scores, by a discriminator, a reward or a planner, were no numbers.

        Raises:
            ValueError: at once if ``check``, which waits for the device; else when the sampler has ended.
        """
        self.bad_scores = self.bad_scores | bad_B
        if self.check:
            self._raise_bad_scores(f"step {step}, ")

    def _raise_bad_scores(self, when: str = "") -> None:
        if bool(self.bad_scores.any()):
            sequence = int(self.bad_scores.nonzero()[0, 0]) + self.canvas.first_row
            raise ValueError(
                f"{when}sequence {sequence}: scores of the discriminator, the reward or the planner were NaN or +inf, "
                "or -inf for all candidates, so they choose nothing"
            )

    def _place(self, index: int) -> tuple[int, int]:
        length = self.canvas.z.shape[1]
        return index // length + self.canvas.first_row, index % length

    def finish(self, history: list[Tensor] | None) -> SamplerOutput:
        """What the call returns.

        Raises:
            ValueError: if somewhere there was nothing to draw from, or scores chose nothing; looked up once, here.
        """
        canvas = self.canvas
        bad = self.bad_rows | canvas.log_probs.isnan()
        if bool(bad.any()):
            sequence, position = self._place(int(bad.flatten().nonzero()[0, 0]))
            raise ValueError(
                f"sequence {sequence}, position {position}: logits of the denoiser were NaN, +inf or all -inf there "
                "(the mask's own aside), so there was no token to draw; check=True names the step and the reason"
            )
        if self.other_calls:
            self._raise_bad_scores()
        return SamplerOutput(canvas.z, self.nfe, self.nfe + self.other_calls, canvas.log_probs, history)


def conditions_of(canvas: Canvas, cond: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions, and the attention mask of the canvas where there is one."""
    mask = {} if canvas.attention_mask is None else {"attention_mask": canvas.attention_mask}
    return {**mask, **cond}


def guided(conditional_nV: Tensor, unconditional_nV: Tensor, scale: float) -> Tensor:
    """``scale * conditional + (1 - scale) * unconditional``, in fp32; what the condition forbids stays forbidden."""
    conditional_nV, unconditional_nV = conditional_nV.float(), unconditional_nV.float()
    mixed = scale * conditional_nV + (1.0 - scale) * unconditional_nV
    return torch.where(conditional_nV.isneginf(), conditional_nV, mixed)
