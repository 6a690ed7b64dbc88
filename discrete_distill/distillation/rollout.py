"""Student paths as data: the steps, what each revealed, and the student's logits there with their graph.

Shape suffixes: B batch, L length, V vocabulary, N chosen rows, R revealed rows, K steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ..distributed.collectives import mean_over_processes
from ..kernels import TokenLosses, token_losses


class DrawnBatch(Protocol):
    """What a method draws for one training step; `Rollout` is one. Losses are averages over its generated tokens."""

    @property
    def sequences(self) -> Tensor:
        """Tokens at the end, int64 ``[B, L]``."""
        ...

    @property
    def generation_mask(self) -> Tensor:
        """Bool ``[B, L]``, true at the positions that the losses count."""
        ...

    def without_logits(self) -> DrawnBatch:
        """A copy without what takes one value for each word of the vocabulary."""
        ...


@dataclass
class TrajectoryStep:
    """One step of a student path.

    Attributes:
        x_t: state before, int64 ``[B, L]``.
        x_s: state after.
        t: time before, ``[B]``.
        s: time after, ``[B]``.
        rows: flattened positions whose logits were computed, int64 ``[N]``, ascending.
        revealed: bool ``[N]``: those that this step revealed.
        logits_NV: the student's raw logits there, with their graph if the step keeps one.
        mask_token_id: the class that is never predicted.
        place: where the revealed positions stand in ``rows``, int64 ``[R]``; found, at the price of a wait for the
            device, where it is not given.
        has_all_masked: whether ``rows`` is known to hold all positions that were masked before.
    """

    x_t: Tensor
    x_s: Tensor
    t: Tensor
    s: Tensor
    rows: Tensor
    revealed: Tensor
    logits_NV: Tensor
    mask_token_id: int
    place: Tensor | None = None
    has_all_masked: bool = False

    @cached_property
    def _revealed_index(self) -> Tensor:
        return self.revealed.nonzero().squeeze(1) if self.place is None else self.place

    @cached_property
    def _revealed_rows(self) -> Tensor:
        return self.rows[self._revealed_index]

    def losses(self, teacher_logits_RV: Tensor | None = None) -> TokenLosses:
        """Log-probability of the drawn token, entropy, and KL divergences from and to a teacher, at the ``R`` revealed
        positions: one read of the logits, differentiable."""
        return token_losses(
            self.revealed_logits(), teacher_logits_RV, self.revealed_tokens(), mask_token_id=self.mask_token_id
        )

    def revealed_rows(self) -> Tensor:
        """Flattened positions that this step revealed, int64 ``[R]``."""
        return self._revealed_rows

    def revealed_tokens(self) -> Tensor:
        """What was drawn there, int64 ``[R]``."""
        return self.x_s.flatten()[self.revealed_rows()]

    def revealed_logits(self) -> Tensor:
        """Raw logits there, ``[R, V]``; not copied if the step kept no others."""
        kept_no_others = len(self._revealed_index) == len(self.revealed)
        return self.logits_NV if kept_no_others else self.logits_NV[self._revealed_index]

    def scatter_to_sequence(self, values_R: Tensor) -> Tensor:
        """``[B, L]`` with one value at each revealed position and 0 elsewhere; differentiable."""
        blank = torch.zeros_like(self.x_t, dtype=values_R.dtype).flatten()
        return blank.index_put((self.revealed_rows(),), values_R).view_as(self.x_t)

    def repeated(self, copies: int) -> TrajectoryStep:
        """The same step of ``copies`` equal sequences in place of each."""
        rows, place = repeated_rows(self.rows, self.x_t.shape[1], copies)
        x_t, x_s, t, s = (each.repeat_interleave(copies, dim=0) for each in (self.x_t, self.x_s, self.t, self.s))
        all_revealed = len(self._revealed_index) == len(self.revealed)
        return TrajectoryStep(
            x_t, x_s, t, s, rows, self.revealed[place], self.logits_NV[place], self.mask_token_id,
            torch.arange(len(rows), device=rows.device) if all_revealed else None, self.has_all_masked,
        )  # fmt: skip

    def token_log_probs(self) -> Tensor:
        """``log p(x_i | x_t)`` at the revealed positions, 0 elsewhere; ``[B, L]``, differentiable."""
        return self.scatter_to_sequence(self.losses().log_prob)


@dataclass
class Rollout:
    """A batch of student paths.

    Attributes:
        steps: the K steps, from all mask to the sample.
        generated: bool ``[B, L]``; the positions that the student wrote.
        group_size: consecutive rows that share what their comparison must hold fixed.
        attention_mask: bool ``[B, L]`` or None.
        model_kwargs: what else the denoisers are given.
        drawn_time: ``[B]``: of paths with random times, the one that was drawn first; the others do not bear on it, so
            that it has the density of the distribution of times however many there are. None of paths on a grid.
    """

    steps: list[TrajectoryStep]
    generation_mask: Tensor
    group_size: int
    attention_mask: Tensor | None
    model_kwargs: dict[str, Any]
    drawn_time: Tensor | None = None

    @property
    def sequences(self) -> Tensor:
        """The samples, int64 ``[B, L]``."""
        return self.steps[-1].x_s

    @property
    def tau(self) -> Tensor:
        """Time of an intermediate state, ``[B]``: of random times one of density ``pi``, on a grid the first (1 for a
        path of one step)."""
        if self.drawn_time is not None:
            return self.drawn_time
        return self.steps[0].s if len(self.steps) > 1 else self.steps[0].t

    @property
    def last_time(self) -> Tensor:
        """Time from which the last step was taken, ``[B]``: ``1 / K`` on an even grid. It names the distribution of the
        sample: a student draws from another one for each number of steps."""
        return self.steps[-1].t

    def num_tokens(self) -> Tensor:
        """Tokens that the student wrote, mean over processes, at least 1: what losses of all tokens are divided by, so
        that each token counts alike wherever it is. All processes must ask for it."""
        return mean_over_processes(self.generation_mask.sum().float()).clamp(min=1.0)

    def without_logits(self) -> Rollout:
        """A copy without the student's logits."""
        # A clone: a view would keep all of them.
        return replace(self, steps=[replace(step, logits_NV=step.logits_NV[:0].clone()) for step in self.steps])

    def token_log_probs(self) -> Tensor:
        """Log-probability of every token in the step that revealed it, ``[B, L]``; 0 where it was given."""
        return torch.stack([step.token_log_probs() for step in self.steps]).sum(0)

    def log_prob(self) -> Tensor:
        """Exact log-probability of the tokens along the path given its unmasking draws, ``[B]``, nats,
        differentiable."""
        return self.token_log_probs().sum(1)

    def check_log_probs(self, log_probs_BL: Tensor) -> None:
        """Refuse a path along which there was nothing to draw from; waits for the device once.

        Args:
            log_probs_BL: of the tokens, as `token_log_probs` gives them.

        Raises:
            ValueError: if one is NaN or infinite: names step, sequence and position.
        """
        wrong = ~log_probs_BL.isfinite()
        if not bool(wrong.any()):
            return
        # The earliest step is the cause; what follows may be its consequence.
        rows = [step.revealed_rows() for step in self.steps]
        found = [(index, each[wrong.flatten()[each]]) for index, each in enumerate(rows)]
        step, places = next(((index, bad) for index, bad in found if len(bad)), (None, wrong.flatten().nonzero()[:, 0]))
        sequence, position = divmod(int(places[0]), log_probs_BL.shape[1])
        raise ValueError(
            f"step {step}, sequence {sequence}, position {position}: the log-probability of the student's token is "
            f"{log_probs_BL[sequence, position].item()}: its logits there hold NaN or +inf, or no token is possible; "
            "look at what the student answers to this state"
        )

    def check_reference(self, reference: Tensor) -> None:
        """Refuse reference sequences that are not as many and as long as the samples.

        Args:
            reference: clean tokens.

        Raises:
            ValueError: if their shape is not that of the samples.
        """
        if reference.shape != self.sequences.shape:
            raise ValueError(
                f"reference has shape {tuple(reference.shape)}, the rollout {tuple(self.sequences.shape)}; "
                "give as many reference sequences as student ones"
            )

    def denoiser_kwargs(self) -> dict[str, Any]:
        """What a denoiser is called with beside state and time."""
        mask = {} if self.attention_mask is None else {"attention_mask": self.attention_mask}
        return {**mask, **self.model_kwargs}


def repeated_rows(rows: Tensor, length: int, copies: int) -> tuple[Tensor, Tensor]:
    """Flattened positions, when every sequence is repeated ``copies`` times in place, ascending; and the place in
    ``rows`` of each."""
    owner = rows // length
    many = ((owner * copies)[:, None] + torch.arange(copies, device=rows.device)) * length + (rows % length)[:, None]
    many, order = many.flatten().sort()
    return many, order // copies
