r"""On-policy distillation (OPTD, arXiv 2608.02942): at states of its own, the student learns to commit many tokens.

The student decodes; one state ``x_t`` of each path is kept. From there the frozen teacher decodes to the end, to its
*outcome* ``y``. The masked positions are ordered by the student's confidence ``max_v p_i(v)``, and ``P`` is the longest
prefix of that order which the student can commit at once: its tokens there are those of the outcome, and the teacher,
which continues from the state with them, still ends in the outcome. With ``S`` all masked positions,

.. math:: L = \max_{i \in P} [\tau - p_i(y_i)]_+
          + \beta \frac{1}{|S|} \sum_{i \in S \setminus P} KL\big(q_i \,\|\, p_i\big),

``q`` the teacher's answer at ``x_t``: a sampler that commits what is more certain than ``tau`` then commits all of
``P``, and nothing else is moved away from the teacher.

Our implementation: the prefix is sought among the length ``n`` on which the tokens agree, ``n / 2``, ``n / 4`` and so
on, each of which costs the teacher a decoding. At a temperature above 0 all decoding draws with one uniform number for
each position, whatever the step: outcomes are then samples of the teacher, and the same number gives the same token
where the distribution is the same.

Shape suffixes: B batch, L length, V vocabulary, N masked positions, n positions of a chunk, K steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.utils.checkpoint import checkpoint

from ... import draws
from ...checks import check_choice, check_count, check_counts, check_number
from ...process import MaskedDiffusion, evaluation_mode
from ...process.denoiser import logits_in_parts
from ...samplers import AncestralSampler, ConfidenceSampler, Frame
from ...samplers.order import rank_of
from ..divergence import token_divergence
from ..networks import Networks
from .corrupted_data import CorruptedData, chunks_of
from .data_method import DataMethod
from .method_config import MethodConfig
from .outcomes import OutcomeDecoder
from .output import StepOutput
from .protocol import UpdatePlan


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig(MethodConfig):
    """Configuration of `OnPolicyDistillation`.

    Args:
        num_steps: steps of the student's paths; each batch draws one of these numbers.
        order: in which the student reveals tokens on its paths: "random" (`AncestralSampler`), or "confidence"
            (`ConfidenceSampler`).
        teacher_steps: steps in which the teacher decodes from a state, the most confident tokens first.
        temperature: of the outcomes; 0 takes the most likely tokens.
        threshold: ``tau``.
        anchor_weight: ``beta``.
        num_checks: prefixes that are tried, each half as long as the one before; where none keeps the outcome, none is
            committed. 0 takes the first without asking the teacher.
        agreement: share of the other tokens of the outcome that must stay for a prefix to be kept (paper: all of them,
            1; an outcome that is drawn rarely stays as a whole).

    Raises:
        TypeError: if a number is of a wrong type.
        ValueError: if a number is out of range, or the order unknown.

    Examples:
        >>> config = OnPolicyConfig(num_steps=(4, 8), teacher_steps=16, num_checks=1)
        >>> config.loss_evaluations(10)  # The teacher decodes twice, and answers once at the state.
        (330.0, 0.0)
    """

    num_steps: tuple[int, ...] = (8,)
    order: Literal["random", "confidence"] = "confidence"
    teacher_steps: int = 32
    temperature: float = 0.0
    threshold: float = 0.9
    anchor_weight: float = 1.0
    num_checks: int = 3
    agreement: float = 1.0

    def __post_init__(self) -> None:
        check_counts("num_steps", self.num_steps)
        check_choice("order", self.order, ("random", "confidence"))
        check_count("teacher_steps", self.teacher_steps)
        check_number("temperature", self.temperature, minimum=0.0)
        check_number("threshold", self.threshold, exclusive_minimum=0.0, maximum=1.0)
        check_number("anchor_weight", self.anchor_weight, minimum=0.0)
        check_count("num_checks", self.num_checks, minimum=0)
        check_number("agreement", self.agreement, minimum=0.0, maximum=1.0)

    def update_plan(self, *, discriminator: bool = False) -> UpdatePlan:
        """The student alone, without data; a discriminator is not trained."""
        return UpdatePlan(order=("student",))

    def path_evaluations(self, batch: int, *, time_conditioning: bool = True) -> tuple[float, float, float]:
        """The path, the tokens that the student would commit, and its answer with a graph."""
        steps = sum(self.num_steps) / len(self.num_steps)
        return steps, (steps + 2.0) * batch, float(batch)

    def loss_evaluations(self, batch: int, *, time_conditioning: bool = True) -> tuple[float, float]:
        """The teacher's outcome, a decoding for each prefix that is tried, and its answer at the state."""
        return (self.teacher_steps * (1.0 + self.num_checks) + 1.0) * batch, 0.0


@dataclass
class OnPolicyStates(CorruptedData):
    """States of the student and what the teacher makes of them: the rollout of `OnPolicyDistillation`.

    ``x_0`` is the teacher's outcome.

    Attributes:
        committed: bool ``[B, L]``, true at the positions of ``P``.
    """

    committed: Tensor


class OnPolicyDistillation(DataMethod[OnPolicyConfig]):
    """On-policy distillation: at its own states the student learns which tokens it can commit together.

    Paths and outcomes are drawn in evaluation mode; the student's loss is read in the mode that it is in.

    Args:
        networks: student and teacher; see `make_networks`.
        process: mask and schedule.
        config: every choice.

    Examples:
        >>> method = OnPolicyDistillation(networks, process, OnPolicyConfig(num_steps=(4,), teacher_steps=4))
        >>> rollout = method.rollout(4, 16, generator=generator)
        >>> bool((rollout.committed <= rollout.loss_mask).all())
        True
        >>> method.loss("student", rollout).loss.backward()
    """

    config_class = OnPolicyConfig

    def __init__(self, networks: Networks, process: MaskedDiffusion, config: OnPolicyConfig | None = None) -> None:
        super().__init__(networks, process, config if config is not None else OnPolicyConfig())

    @torch.no_grad()
    def rollout(
        self,
        batch_size: int | None = None,
        length: int | Frame | None = None,
        *,
        x_init: Tensor | None = None,
        attention_mask: Tensor | None = None,
        reference: Any = None,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        tokens: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> OnPolicyStates:
        """Draw paths of the student, keep one state of each, and let the teacher decode it.

        Args:
            batch_size: number of sequences.
            length: their tokens, or a `Frame` around them.
            x_init: sequences to complete, int64 ``[B, L]``, in place of the two sizes.
            attention_mask: bool ``[B, L]``, true at real tokens; padding is not generated.
            reference: not read.
            generator: source of randomness.
            device: of the paths; that of the student by default.
            tokens: not read; the same state of ``generator`` draws the same batch.
            model_kwargs: passed to both networks by keyword.

        Raises:
            ValueError: if neither sizes nor ``x_init`` are given.
        """
        shape = None
        if x_init is None:
            if batch_size is None or length is None:
                raise ValueError("give batch_size and length, or x_init")
            shape = (batch_size, length)
        given: dict[str, Any] = {"attention_mask": attention_mask, "model_kwargs": model_kwargs}
        choice = draws.randint(len(self.config.num_steps), (), device="cpu", generator=generator)
        kind = ConfidenceSampler if self.config.order == "confidence" else AncestralSampler
        sampler = kind(self.process, num_steps=self.config.num_steps[int(choice)])
        with evaluation_mode(self.student, self.teacher):
            out = sampler(
                self.student, shape, x_init=x_init, generator=generator, device=device, return_history=True, **given
            )
            assert out.history is not None
            history = torch.stack(out.history)
            x_t = draw_state(history, generator)
            loss_mask = x_t != out.sequences  # What the path revealed later: neither prompt nor padding.
            size = (history[0] != out.sequences).sum(1)
            decoder = OutcomeDecoder(
                process=self.process,
                num_steps=self.config.teacher_steps,
                temperature=self.config.temperature,
                seed=draws.seed(device=x_t.device, generator=generator),
                size=size,
                generation_mask=loss_mask,
                **given,
            )
            outcome = decoder.outcome(self.teacher, x_t)
            committed = self._committed(decoder, x_t, outcome)
        t = self.process.time_of_count(loss_mask.sum(1), size)
        return OnPolicyStates(x_t, t, loss_mask, attention_mask, dict(model_kwargs or {}), outcome, committed)

    def _committed(self, decoder: OutcomeDecoder, x_t: Tensor, outcome: Tensor) -> Tensor:
        """The prefix ``P`` of each sequence, bool ``[B, L]``; see `OnPolicyConfig` for which are tried."""
        tokens, confidence = decoder.proposal(self.student, x_t)
        masked, rank = decoder.generation_mask, rank_of(confidence)
        wrong = masked & (tokens != outcome)
        length_B = torch.where(wrong, rank, masked.sum(1, keepdim=True)).amin(1)
        if not self.config.num_checks:
            return masked & (rank < length_B[:, None])
        kept_B = length_B == 0
        for check in range(self.config.num_checks):
            if check:
                length_B = torch.where(kept_B, length_B, length_B // 2)
            prefix = masked & (rank < length_B[:, None])
            continued = decoder.outcome(self.teacher, torch.where(prefix, outcome, x_t))
            others = masked & ~prefix
            same = ((continued == outcome) & others).sum(1) >= self.config.agreement * others.sum(1)
            kept_B = kept_B | same
            if bool(kept_B.all()):
                break
        return masked & (rank < length_B[:, None]) & kept_B[:, None]

    def student_loss(
        self, rollout: OnPolicyStates, *, num_tokens: Tensor | float | None = None, **given: Any
    ) -> StepOutput:
        """Compute the hinge on committed tokens, a mean over sequences with a mask, and the KL from the teacher on the
        others, a mean over all masked positions.

        Args:
            rollout: of this step.
            num_tokens: masked positions of the whole batch, where the rollout is a part of it: the sum of the KL is
                divided by them, and the hinge weighs as much as the part's share of them.
            **given: the other keywords of `loss`; not read.
        """
        positions, (batch, length) = rollout.positions, rollout.x_t.shape
        with torch.no_grad(), evaluation_mode(self.teacher):
            teacher_logits_of = logits_in_parts(
                self.teacher, rollout.x_t, rollout.t, positions, model_kwargs=rollout.denoiser_kwargs()
            )
        logits_of = self.student_logits(rollout)
        target_N, committed_N = rollout.x_0.flatten()[positions], rollout.committed.flatten()[positions]

        def part(rows: slice) -> Tensor:
            log_probs_nV = self.process.masked_log_probs(logits_of(rows))
            with torch.no_grad(), evaluation_mode(self.teacher):
                teacher_nV = self.process.masked_log_probs(teacher_logits_of(rows))
            p_n = log_probs_nV.gather(1, target_N[rows, None])[:, 0].exp()
            hinge_n = (self.config.threshold - p_n).clamp(min=0.0) * committed_N[rows]
            kl_n = token_divergence(log_probs_nV, teacher_nV, kind="forward") * ~committed_N[rows]
            return torch.stack((hinge_n, kl_n))

        parts = [checkpoint(part, rows, use_reentrant=False) for rows in chunks_of(len(positions))]
        hinge_N, kl_N = torch.cat(parts, dim=1)
        hinge_B = hinge_N.new_zeros(batch).scatter_reduce(0, positions // length, hinge_N, "amax", include_self=True)
        hinge = hinge_B.sum() / rollout.loss_mask.any(1).sum().clamp(min=1)
        count = rollout.num_tokens() if num_tokens is None else num_tokens
        kl = kl_N.sum() / count
        committed = rollout.committed.sum() / rollout.loss_mask.sum().clamp(min=1)
        metrics = {"hinge": hinge.detach(), "anchor_kl": kl.detach(), "committed": committed}
        share = rollout.num_counted() / count
        return StepOutput(share * hinge + self.config.anchor_weight * kl, metrics)


def draw_state(history: Tensor, generator: Generator | None) -> Tensor:
    """Draw one state of each path, evenly among those that hold a mask which the path reveals; the first state of a
    path that reveals none.

    Args:
        history: states of the paths, int64 ``[K + 1, B, L]``, of which the last is the end.
        generator: source of randomness.

    Returns:
        int64 ``[B, L]``.
    """
    unfinished_B = (history[:-1] != history[-1]).any(2).sum(0)  # These are the first states of the path.
    u = draws.rand(unfinished_B.shape, device=history.device, generator=generator)
    step_B = (u * unfinished_B).long().minimum((unfinished_B - 1).clamp(min=0))
    return history[step_B, torch.arange(history.shape[1], device=history.device)]
