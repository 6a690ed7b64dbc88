"""Student paths as data: the steps, what each revealed, and the student's logits there with their graph.

Shape suffixes: B batch, L length, V vocabulary, N chosen positions, R revealed positions, K steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ..checks import NO_MASK, check_tokens
from ..distributed.collectives import mean_over_processes
from ..kernels import TokenLosses, token_losses
from ..process import Denoiser
from .agreement import sample_agreement
from .end_of_sequence import EndOfSequence
from .step_evaluation import StepEvaluation


class DrawnBatch(Protocol):
    """What a method draws for one training step; `Rollout` is one. Losses are averages over its generated tokens.

    Examples:
        >>> rollout = IntermediateStateMatcher(process)(student, (8, 16), generator=generator)
        >>> rollout.sequences.shape, bool(rollout.loss_mask.all())
        (torch.Size([8, 16]), True)
    """

    @property
    def sequences(self) -> Tensor:
        """Tokens at the end, int64 ``[B, L]``."""
        ...

    @property
    def loss_mask(self) -> Tensor:
        """Bool ``[B, L]``, true at the positions that the losses count."""
        ...

    def num_counted(self) -> Tensor:
        """What the losses of this process are averages over, a number: the positions of ``loss_mask`` in most."""
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
        positions: flattened positions whose logits were computed, int64 ``[N]``, ascending.
        revealed: bool ``[N]``: those that this step revealed.
        logits_NV: the student's logits there (without forbidden ids, divided by the temperature), with their graph if
            the step keeps one; ``[0, V]`` where they were not kept.
        mask_token_id: the class that is never predicted.
        place: where the revealed positions stand in ``positions``, int64 ``[R]``; found, at the price of a wait for the
            device, where it is not given.
        has_all_masked: whether ``positions`` is known to hold all positions that were masked before.
        log_prob_R: log-probabilities of the revealed tokens when they were drawn, ``[R]`` in nats, where logits were
            not kept.
        evaluation: how the logits were computed; None of a step that no `IntermediateStateMatcher` made.

    Examples:
        >>> rollout = IntermediateStateMatcher(process, num_steps=(2,))(student, (8, 16), generator=generator)
        >>> first, last = rollout.steps
        >>> bool(process.is_masked(first.x_t).all()), last.s.unique()
        (True, tensor([0.]))
    """

    x_t: Tensor
    x_s: Tensor
    t: Tensor
    s: Tensor
    positions: Tensor
    revealed: Tensor
    logits_NV: Tensor
    mask_token_id: int
    place: Tensor | None = None
    has_all_masked: bool = False
    log_prob_R: Tensor | None = None
    evaluation: StepEvaluation | None = None

    @cached_property
    def _revealed_index(self) -> Tensor:
        return self.revealed.nonzero().squeeze(1) if self.place is None else self.place

    @cached_property
    def _revealed_positions(self) -> Tensor:
        return self.positions[self._revealed_index]

    def losses(self, teacher_logits_RV: Tensor | None = None) -> TokenLosses:
        """Log-probability of the drawn token, entropy, and KL divergences from and to a teacher, at the ``R`` revealed
        positions: one read of the logits, differentiable."""
        return token_losses(
            self.revealed_logits(), teacher_logits_RV, self.revealed_tokens(), mask_token_id=self.mask_token_id
        )

    def revealed_positions(self) -> Tensor:
        """Flattened positions that this step revealed, int64 ``[R]``."""
        return self._revealed_positions

    def revealed_tokens(self) -> Tensor:
        """What was drawn there, int64 ``[R]``."""
        return self.x_s.flatten()[self.revealed_positions()]

    def revealed_logits(self) -> Tensor:
        """Logits there, ``[R, V]``; not copied if the step kept no others.

        Raises:
            ValueError: if the logits were not kept.
        """
        if len(self.logits_NV) != len(self.positions):
            raise ValueError(
                f"the step has {len(self.positions)} positions and {len(self.logits_NV)} rows of logits: the path was "
                "drawn without them; draw it with keep_logits=True, or call log_prob(denoiser)"
            )
        kept_no_others = len(self._revealed_index) == len(self.revealed)
        return self.logits_NV if kept_no_others else self.logits_NV[self._revealed_index]

    def scatter_to_sequence(self, values_R: Tensor) -> Tensor:
        """``[B, L]`` with one value at each revealed position and 0 elsewhere; differentiable."""
        blank = torch.zeros_like(self.x_t, dtype=values_R.dtype).flatten()
        return blank.index_put((self.revealed_positions(),), values_R).view_as(self.x_t)

    def repeated(self, copies: int) -> TrajectoryStep:
        """The same step of ``copies`` equal sequences in place of each."""
        positions, place = repeated_positions(self.positions, self.x_t.shape[1], copies)
        x_t, x_s, t, s = (each.repeat_interleave(copies, dim=0) for each in (self.x_t, self.x_s, self.t, self.s))
        all_revealed = len(self._revealed_index) == len(self.revealed)
        kept = len(self.logits_NV) == len(self.positions)
        log_prob_R = self.log_prob_R
        if log_prob_R is not None:
            log_prob_R = log_prob_R[repeated_positions(self.revealed_positions(), self.x_t.shape[1], copies)[1]]
        return TrajectoryStep(
            x_t, x_s, t, s, positions, self.revealed[place], self.logits_NV[place] if kept else self.logits_NV,
            self.mask_token_id, torch.arange(len(positions), device=positions.device) if all_revealed else None,
            self.has_all_masked, log_prob_R,
            None if self.evaluation is None else replace(self.evaluation, repeats=place),
        )  # fmt: skip

    def log_probs(self, denoiser: Denoiser | None = None) -> Tensor:
        """Log-probabilities of the revealed tokens, ``[R]`` in nats, differentiable; see
        `Rollout.token_log_probs`."""
        if denoiser is None:
            return self.losses().log_prob if self.log_prob_R is None else self.log_prob_R
        if self.evaluation is None:
            raise ValueError(
                "this step does not say how its logits were computed; draw the path by an IntermediateStateMatcher"
            )
        place = None if len(self._revealed_index) == len(self.revealed) else self._revealed_index
        return self.evaluation.log_probs(denoiser, self.revealed_tokens(), place)

    def token_log_probs(self, denoiser: Denoiser | None = None) -> Tensor:
        """``log p(x_i | x_t)`` at the revealed positions, 0 elsewhere; ``[B, L]``, differentiable."""
        return self.scatter_to_sequence(self.log_probs(denoiser))


@dataclass
class Rollout:
    """A batch of student paths.

    Attributes:
        steps: the K steps, from all mask to the sample.
        generation_mask: bool ``[B, L]``; the positions that the student wrote.
        group_size: consecutive rows that share what their comparison must hold fixed.
        attention_mask: bool ``[B, L]`` or None.
        model_kwargs: what else the denoisers are given.
        drawn_time: ``[B]``: of paths with random times, the one that was drawn first; the others do not bear on it, so
            that it has the density of the distribution of times however many there are. None of paths on a grid.
        end: the end-of-sequence token, where what follows it does not count.
        branching: whether rows of a group share their path up to one step.

    Examples:
        >>> rollout = IntermediateStateMatcher(process, num_steps=(2,))(student, (8, 16), generator=generator)
        >>> len(rollout.steps), rollout.sequences.shape, rollout.token_log_probs()[0, 0].item()  # -log(8)
        (2, torch.Size([8, 16]), -2.079...)
    """

    steps: list[TrajectoryStep]
    generation_mask: Tensor
    group_size: int
    attention_mask: Tensor | None
    model_kwargs: dict[str, Any]
    drawn_time: Tensor | None = None
    end: EndOfSequence | None = None
    branching: bool = False

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

    @cached_property
    def loss_mask(self) -> Tensor:
        """Bool ``[B, L]``, true at generated positions that count in losses, rewards and metrics: all, or those up to
        the end-of-sequence token."""
        return self.judged()[1]

    def judged(self, x_0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cut sequences at their end, as other networks judge them.

        Args:
            x_0: clean tokens with the same prompts, int64 ``[B, L]``, such as references; the samples by default.

        Returns:
            The sequences, with the end-of-sequence token wherever a text has ended, and bool ``[B, L]``, true at
            generated positions that count. Without an end both are as they are.
        """
        x_0 = self.sequences if x_0 is None else x_0
        return (x_0, self.generation_mask) if self.end is None else self.end.cut(x_0, self.generation_mask)

    def counted(self, values_BL: Tensor) -> Tensor:
        """The values ``[B, L]``, 0 where a position does not count."""
        return values_BL if self.end is None else values_BL.where(self.loss_mask, 0.0)

    def sum_counted(self, values: Sequence[Tensor]) -> Tensor:
        """Sum of values at the revealed positions of each step, ``[R]`` each, over positions that count; a scalar."""
        if self.end is not None:
            masks = [self.loss_mask.flatten()[step.revealed_positions()] for step in self.steps]
            values = [each.where(mask, 0.0) for each, mask in zip(values, masks, strict=True)]
        return torch.stack([each.sum() for each in values]).sum()

    @cached_property
    def agreement(self) -> Tensor | None:
        """Probability that two samples have the same token; see `sample_agreement`."""
        x_0, masks, pairs = self.sequences, (self.generation_mask, self.loss_mask), self.branching
        return sample_agreement(x_0, *masks, group_size=self.group_size, branching=pairs)

    def num_counted(self) -> Tensor:
        """Tokens that count (`loss_mask`), on this process."""
        return self.loss_mask.sum()

    def num_tokens(self) -> Tensor:
        """Tokens that count, mean over processes, at least 1: what losses of all tokens are divided by, so that each
        token counts alike wherever it is. All processes must call it."""
        return mean_over_processes(self.num_counted().float()).clamp(min=1.0)

    def without_logits(self) -> Rollout:
        """A copy without the student's logits."""
        # A clone: a view would keep all of them.
        return replace(self, steps=[replace(step, logits_NV=step.logits_NV[:0].clone()) for step in self.steps])

    def token_log_probs(self, denoiser: Denoiser | None = None) -> Tensor:
        """Compute the log-probability of every token in the step that revealed it.

        Args:
            denoiser: network whose probabilities are computed, such as the student after an update, or a reference:
                each stored state is evaluated once, in evaluation mode, at the temperature and without the forbidden
                ids of the path. For the network that drew the path, the numbers are those of the path exactly. By
                default those of the path itself: with their graph if the path keeps one, else as they were drawn.

        Returns:
            ``[B, L]`` in nats, differentiable; 0 where a token was given or filled in behind an end.

        Raises:
            ValueError: if the path was not drawn by an `IntermediateStateMatcher` and a denoiser is given.

        Examples:
            >>> matcher = IntermediateStateMatcher(process)
            >>> with torch.no_grad():
            ...     rollout = matcher(student, (8, 16), generator=generator)
            >>> ratio = (rollout.token_log_probs(student) - rollout.token_log_probs()).exp()
            >>> ratio.unique()  # The student has not changed yet.
            tensor([1.], grad_fn=...)
        """
        return torch.stack([step.token_log_probs(denoiser) for step in self.steps]).sum(0)

    def log_prob(self, denoiser: Denoiser | None = None) -> Tensor:
        """Compute the exact log-probability of the tokens along the path, given the positions that each step revealed.

        Args:
            denoiser: see `token_log_probs`.

        Returns:
            ``[B]`` in nats, differentiable. It is that of all tokens, whatever counts in losses (`loss_mask`).
        """
        return self.token_log_probs(denoiser).sum(1)

    def check_log_probs(self, log_probs_BL: Tensor) -> None:
        """Refuse a path along which there was nothing to draw from, and warn of one where there was nothing to draw;
        waits for the device once.

        Args:
            log_probs_BL: of the tokens, as `token_log_probs` gives them.

        Raises:
            ValueError: if one is NaN or infinite: names step, sequence and position.
        """
        wrong = ~log_probs_BL.isfinite()
        any_wrong, any_generated = torch.stack((wrong.any(), self.generation_mask.any())).tolist()
        if not any_generated:
            warnings.warn(NO_MASK, stacklevel=3)
        if not any_wrong:
            return
        # The earliest step is the cause; what follows may be its consequence.
        positions = [step.revealed_positions() for step in self.steps]
        found = [(index, each[wrong.flatten()[each]]) for index, each in enumerate(positions)]
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
            TypeError: if they are not int64.
            ValueError: if their shape is not that of the samples.
        """
        check_tokens("reference", reference)
        if reference.shape != self.sequences.shape:
            raise ValueError(
                f"reference has shape {tuple(reference.shape)}, the rollout {tuple(self.sequences.shape)}; "
                "give as many reference sequences as student ones, of as many tokens"
            )

    def denoiser_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the denoisers: ``model_kwargs``, and the attention mask where there is one."""
        mask = {} if self.attention_mask is None else {"attention_mask": self.attention_mask}
        return {**mask, **self.model_kwargs}


def repeated_positions(positions: Tensor, length: int, copies: int) -> tuple[Tensor, Tensor]:
    """Flattened positions, when every sequence is repeated ``copies`` times in place, ascending; and the place in
    ``positions`` of each."""
    owner = positions // length
    many = ((owner * copies)[:, None] + torch.arange(copies, device=positions.device)) * length + (positions % length)[
        :, None
    ]
    many, order = many.flatten().sort()
    return many, order // copies
