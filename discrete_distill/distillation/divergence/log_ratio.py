"""Estimators of ``log q_student(x_t) / q_teacher(x_t)`` behind one interface. Student minus teacher, always.

Shape suffixes: B batch, L length, V vocabulary, N chosen positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ...checks import check_per_row, check_same_shape
from ...kernels import token_losses
from ...process import Denoiser, MaskedDiffusion, evaluation_mode, logits_at
from ...process.sequences import check_sequences


class LogRatio(NamedTuple):
    """Values ``[B, L]`` at the positions that count (0 elsewhere) and one value ``[B]`` for each sequence, nats.

    Examples:
        >>> estimator = DiscriminatorLogRatio(process, lambda x_t, t: torch.full(x_t.shape, 0.5))
        >>> log_ratio = estimator(torch.tensor([[3, 8, 8]]), torch.tensor([0.7]))
        >>> log_ratio.per_position, log_ratio.per_sequence
        (tensor([[0.0000, 0.5000, 0.5000]]), tensor([0.5000]))
    """

    per_position: Tensor
    per_sequence: Tensor


class LogRatioEstimator(Protocol):
    """``estimator(x_t, t, x_0=x_0, generation_mask=..., s=..., model_kwargs=...) -> LogRatio``.

    ``x_0`` are the clean tokens, for estimators that read them; ``s`` ``[B]`` is `Rollout.last_time`, for those that
    distinguish the students of different steps; ``model_kwargs`` are passed to the networks by keyword.

    Examples:
        >>> def excess_of_threes(x_t, t, *, x_0=None, generation_mask=None, s=None, model_kwargs=None):
        ...     ratio = (x_0 == 3).float()
        ...     return LogRatio(ratio, ratio.sum(1))
        >>> ScoreFunctionIntegralKL(process, excess_of_threes).score(torch.tensor([[3, 3, 1]])).per_sequence
        tensor([2.])
    """

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        x_0: Tensor | None = None,
        generation_mask: Tensor | None = None,
        s: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> LogRatio: ...


@dataclass(frozen=True)
class DiscriminatorLogRatio:
    """The logit of a classifier of student (1) against reference (0), averaged over masked positions; arXiv 2509.25035.

    Where the corruption left no mask, it is averaged over the positions that may be masked: such states are a part of
    the divergence as well. The network is read in evaluation mode.

    Biased by what the classifier has not learned (towards 0), by its lag behind the student, and by label smoothing,
    which bounds it by ``log((2 - s) / s)``.

    Args:
        process: names the mask.
        network: ``network(x_t, t) -> logits [B, L]``.

    Examples:
        >>> log_ratio = DiscriminatorLogRatio(process, discriminator)
        >>> reward = LogRatioReward(clip=8.0)(log_ratio(x_t, t).per_sequence)
        >>> reward.shape
        torch.Size([8])
    """

    process: MaskedDiffusion
    network: Callable[..., Tensor]

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        x_0: Tensor | None = None,
        generation_mask: Tensor | None = None,
        s: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> LogRatio:
        check_sequences(x_t, generation_mask)
        check_per_row("t", t, len(x_t))
        judged = self.process.judged_positions(x_t, generation_mask)
        with evaluation_mode(self.network):
            logits = self.network(x_t, t, **(model_kwargs or {}))
        logits = torch.where(judged, logits.to(torch.promote_types(logits.dtype, torch.float32)), 0.0)
        return LogRatio(logits, logits.sum(1) / judged.sum(1).clamp(min=1))


@dataclass(frozen=True)
class AuxiliaryDenoiserLogRatio:
    """The log-ratio of a denoiser fitted to the student's samples and the teacher, on the same masks.

    As in DMD (arXiv 2311.18828) and IDLM (arXiv 2602.19066).

    ``r_i = log q(x_i | x_t) - log p(x_i | x_t)`` at masked positions, and their sum for the sequence. Averaged over
    corruptions of ``x_0`` with the weights of `MaskedDiffusion.draw_corruption` the sum estimates the difference of two
    NELBOs, ``log q_student(x) - log p_teacher(x)``. The noise of the masks cancels in the difference.

    An auxiliary that ``accepts_step`` is passed ``s``, the `Rollout.last_time` of the samples. One that is not sees the
    mixture of all numbers of steps, and so does the gradient: some may then sharpen as long as others blur.

    Biased by what the auxiliary has not learned and by its lag behind the student; and by how far each network's
    conditionals are from those of one joint distribution. Both networks are read in evaluation mode.

    Args:
        process: names the mask.
        auxiliary: denoiser fitted to student samples.
        teacher: the frozen teacher.

    Examples:
        >>> def knowing(x_t, t):  # A denoiser that is certain of every token.
        ...     return 100.0 * torch.nn.functional.one_hot(data, 9)
        >>> log_ratio = AuxiliaryDenoiserLogRatio(process, auxiliary=knowing, teacher=teacher)(x_t, t, x_0=data)
        >>> log_ratio.per_position[process.is_masked(x_t)].mean().item()  # log 1 - log 1/8
        2.079...
    """

    process: MaskedDiffusion
    auxiliary: Denoiser
    teacher: Denoiser

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        x_0: Tensor | None = None,
        generation_mask: Tensor | None = None,
        s: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> LogRatio:
        """Raises ValueError without the clean tokens ``x_0``, or where shapes do not fit."""
        if x_0 is None:
            raise ValueError("an auxiliary denoiser scores the clean tokens at masked positions; pass x_0=")
        positions, tokens_N = scored_tokens(self.process, x_t, x_0, generation_mask)
        with evaluation_mode(self.auxiliary, self.teacher):
            auxiliary_NV = logits_at(self.auxiliary, x_t, t, positions, s=s, model_kwargs=model_kwargs)
            auxiliary_N = log_prob_of(self.process, auxiliary_NV, tokens_N)
            teacher_NV = logits_at(self.teacher, x_t, t, positions, model_kwargs=model_kwargs)
            values = auxiliary_N - log_prob_of(self.process, teacher_NV, tokens_N)
        return summed(values, positions, x_t)


def scored_tokens(
    process: MaskedDiffusion, x_t: Tensor, x_0: Tensor, generation_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Flattened masked positions of ``x_t``, and the clean tokens there, ``[N]`` each."""
    check_sequences(x_t, generation_mask)
    check_sequences(x_0, None)
    if x_0.shape != x_t.shape:
        raise ValueError(f"x_0 has shape {list(x_0.shape)}, x_t {list(x_t.shape)}; they must agree")
    positions = process.is_masked(x_t, generation_mask).flatten().nonzero().squeeze(1)
    return positions, x_0.flatten()[positions]


def log_prob_of(process: MaskedDiffusion, logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """Log-probability of each token, ``[N]``; forbidden ids and the mask have none."""
    return token_losses(process.forbid(logits_NV), None, tokens_N, mask_token_id=process.mask_token_id).log_prob


def summed(values_N: Tensor, positions: Tensor, x_t: Tensor) -> LogRatio:
    """Values at flattened positions of ``x_t``, 0 elsewhere, and their sum for each sequence."""
    per_position = torch.zeros(x_t.shape, dtype=values_N.dtype, device=x_t.device)
    per_position = per_position.flatten().index_put((positions,), values_N).view_as(x_t)
    return LogRatio(per_position, per_position.sum(1))


@dataclass(frozen=True)
class ExactLogRatio:
    """The true log-ratio, computed by a given function (see ``discrete_distill.exact``). Unbiased.

    Args:
        process: names the mask.
        function: ``function(x_t, t) -> [B]``, ``log q_student(x_t) - log q_teacher(x_t)`` in nats.

    Examples:
        >>> def log_ratio_of(x_t, t):  # A student that writes token 3 half as often.
        ...     return (x_t == 3).sum(1) * torch.tensor(0.5).log()
        >>> ExactLogRatio(process, log_ratio_of)(torch.tensor([[3, 3, 8]]), torch.tensor([0.3])).per_sequence
        tensor([-1.3863])
    """

    process: MaskedDiffusion
    function: Callable[[Tensor, Tensor], Tensor]

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        x_0: Tensor | None = None,
        generation_mask: Tensor | None = None,
        s: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> LogRatio:
        """The value of the sequence stands at every judged position, as the optimal discriminator's logit does."""
        value = self.function(x_t, t)
        return LogRatio(value[:, None] * self.process.judged_positions(x_t, generation_mask), value)


def difference_of_logs(log_q: Tensor, log_p: Tensor) -> Tensor:
    """``log q - log p``, 0 where both are minus infinity (the mask).

    Raises:
        TypeError: if they are no floating-point numbers.
        ValueError: if their shapes differ.

    Examples:
        >>> impossible = -torch.inf
        >>> difference_of_logs(torch.tensor([-1.0, impossible]), torch.tensor([-3.0, impossible]))
        tensor([2., 0.])
    """
    check_same_shape(log_q=log_q, log_p=log_p)
    return torch.where(torch.isneginf(log_q) & torch.isneginf(log_p), 0.0, log_q - log_p)
