"""Scoring candidates without training: how much better the teacher predicts what was revealed than the student does.

Shape suffixes: B batch, L length, N positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..kernels import token_losses
from ..process import Denoiser, MaskedDiffusion, logits_in_parts


@dataclass(frozen=True)
class Candidate:
    """What a re-ranking step might become.

    Attributes:
        x_t: the state after the step, int64 ``[B, L]``.
        s: its time, ``[B]``.
        revealed: flattened positions that the step drew, int64 ``[N]``; the same for all candidates of a step.
        generation_mask: bool ``[B, L]``, what the sampler may write.
        uniform: fp32 ``[B, L]`` in (0, 1), the same for all candidates of a step: randomness for scores.
        model_kwargs: what the denoiser is passed, attention mask included.

    Examples:
        >>> revealed, drawn = torch.tensor([3, 18]), torch.rand(data.shape, generator=generator)
        >>> candidate = Candidate(data, 0.0 * t, revealed, generation_mask=data >= 0, uniform=drawn)
        >>> TeacherRatio(teacher, student, process).score_candidate(candidate)  # The student is a copy of the teacher.
        tensor([0., 0., 0., 0., 0., 0., 0., 0.])
    """

    x_t: Tensor
    s: Tensor
    revealed: Tensor
    generation_mask: Tensor
    uniform: Tensor
    model_kwargs: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class CandidateScorer(Protocol):
    """Scores candidates by more than their tokens.

    Examples:
        >>> class FewerThrees:
        ...     evaluations = 0  # It calls no network.
        ...     def score_candidate(self, candidate):
        ...         return -(candidate.x_t == 3).sum(1).float()
        >>> sampler = RGASampler(process, reward=FewerThrees(), num_steps=4, num_candidates=8, rerank_scale=100.0)
        >>> int((sampler(teacher, (2, 16), generator=generator).sequences == 3).sum())
        0
    """

    @property
    def evaluations(self) -> int:
        """Network evaluations that a candidate costs."""
        ...

    def score_candidate(self, candidate: Candidate, /) -> Tensor:
        """fp32 ``[B]``, nats; higher is better."""
        ...


@dataclass(frozen=True)
class TeacherRatio:
    r"""The teacher against the student, as a scorer of `RGASampler` that needs no training.

    Of the positions that a step revealed, a random part ``H`` is hidden again, the same for all candidates, and both
    networks predict it:

    .. math:: \mathrm{score} = \sum_{i \in H} \log p_{teacher}(x_i \mid z_{-H}) - \log p_{student}(x_i \mid z_{-H})

    Tokens of one step are drawn independently of each other; the teacher's probability of one part, given the other,
    measures how well they fit. The student's term is subtracted, so that the score is 0 where both networks agree. Each
    candidate costs two passes.

    Args:
        teacher: any `Denoiser`.
        student: the denoiser that draws.
        process: mask and schedule; the networks are passed the time at which so many masks are expected.
        mask_ratio: probability of hiding each revealed position, in ``(0, 1]``.

    Raises:
        ValueError: if ``mask_ratio`` is outside ``(0, 1]``.

    Examples:
        >>> scorer = TeacherRatio(teacher, student, process)
        >>> sampler = RGASampler(process, reward=scorer, num_steps=4, num_candidates=2)
        >>> sampler(student, (2, 16), generator=generator).network_evaluations  # Four steps of 1 + 2 * 2.
        20
    """

    teacher: Denoiser
    student: Denoiser
    process: MaskedDiffusion
    mask_ratio: float = 0.5
    evaluations: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_ratio <= 1.0:
            raise ValueError(f"mask_ratio must lie in (0, 1], got {self.mask_ratio}")

    @torch.no_grad()
    def score_candidate(self, candidate: Candidate, /) -> Tensor:
        """Scores ``[B]``; 0 where nothing was hidden."""
        positions, length = candidate.revealed, candidate.x_t.shape[1]
        tokens = candidate.x_t.flatten()[positions]
        # Positions that stay visible weigh nothing; leaving them out would wait for the device to count them.
        hidden = candidate.uniform.flatten()[positions] < self.mask_ratio
        shown = torch.where(hidden, self.process.mask_token_id, tokens)
        x_t = candidate.x_t.flatten().index_copy(0, positions, shown).view_as(candidate.x_t)
        masked = self.process.is_masked(x_t, candidate.generation_mask)
        t = self.process.time_of_count(masked.sum(1), self.process.num_generated(x_t, candidate.generation_mask))
        end, given = torch.zeros_like(t), candidate.model_kwargs
        logits = [
            logits_in_parts(network, x_t, t, positions, s=end, model_kwargs=given)(slice(None))
            for network in (self.teacher, self.student)
        ]
        log_probs = [
            token_losses(
                self.process.forbid(each),
                None,
                tokens,
                weight_R=hidden.float(),
                mask_token_id=self.process.mask_token_id,
            ).log_prob
            for each in logits
        ]
        scores = torch.zeros(len(x_t), device=x_t.device)
        return scores.index_add(0, positions // length, (log_probs[0] - log_probs[1]).float())
