"""The score-function surrogate of the integral KL: pure functions of log-ratios and log-probabilities of paths.

Shape suffixes: B batch, L length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ...checks import check_count, check_floats, check_mask, check_per_row
from ..rewards import Baseline, LogRatioReward, RunningMean, Scale, group_advantages


class SurrogateOutput(NamedTuple):
    """A scalar whose gradient is the estimate, and its parts.

    Attributes:
        loss: scalar; its value has no meaning, its gradient is an estimate of that of the integral KL.
        log_ratio: ``[B]`` (or ``[B, L]``, as given to `integral_kl`), nats, before clipping.
        advantages: of rewards, ``[B]``, or ``[B, L]`` with token credit: positive where the drawn token should become
            more probable, 0 where nothing was drawn.

    Examples:
        >>> log_probs = torch.full((2, 3), -1.0, requires_grad=True)  # Of two sequences of three tokens.
        >>> out = integral_kl(log_probs, torch.tensor([1.0, -1.0]), group_size=2, baseline="leave_one_out")
        >>> out.advantages  # Rewards are -1 and 1.
        tensor([-2.,  2.])
    """

    loss: Tensor
    log_ratio: Tensor
    advantages: Tensor


def integral_kl(
    token_log_probs: Tensor,
    log_ratio: Tensor,
    *,
    time_weight: Tensor | None = None,
    group_size: int = 1,
    baseline: Baseline | RunningMean = "none",
    scale: Scale = "none",
    clip: float | None = None,
    reward: Callable[[Tensor], Tensor] = LogRatioReward(),  # noqa: B008  A frozen dataclass.
    generation_mask: Tensor | None = None,
) -> SurrogateOutput:
    """Compute the score-function surrogate of the integral KL (Theorem 3.1 of arXiv 2509.25035).

    ``loss = -mean_b w_b A_b sum_l log p(x_bl)`` with ``w = omega(t) / pi(t)`` and ``A`` the advantage of the reward
    ``-R``, ``R = log q_student(x_t, t) - log q_teacher(x_t, t)``. Its gradient estimates
    ``grad int omega(t) KL(q_student(., t) || q_teacher(., t)) dt``, without bias for ``scale="none"``, no clip and a
    baseline of "none", "leave_one_out" or a `RunningMean`; `group_advantages` describes the other choices.
    `ScoreFunctionIntegralKL` corrupts and scores samples and calls this function; `discrete_distill.exact.integral_kl`
    is the value by enumeration.

    Args:
        token_log_probs: ``[B, L]``, nats, log-probabilities of the tokens that the student drew, 0 at all other
            positions; differentiable, as `Rollout.token_log_probs` gives them.
        log_ratio: ``R`` of each corrupted sample ``[B]``, nats, or one value for each token ``[B, L]``; a constant.
        time_weight: ``omega(t) / pi(t)`` of each sample's time, ``[B]``; 1 by default.
        group_size: consecutive rows in a group; divides ``B``.
        baseline: see `group_advantages`; of values for each token, over the tokens at one position.
        scale: see `group_advantages`.
        clip: maximum size of an advantage; None: no limit (paper: 3).
        reward: maps log-ratios to rewards; ``LogRatioReward(8.0)`` clips them first, as the paper does.
        generation_mask: bool ``[B, L]``, true at positions that the student generates (all, by default). The others
            enter no baseline and no scale.

    Returns:
        `SurrogateOutput`.

    Raises:
        TypeError: if log-probabilities or log-ratios are no floating-point numbers, or the mask holds no booleans.
        ValueError: if the batch is empty, shapes do not fit, the group size does not divide the batch, or a reward is
            not finite.

    Examples:
        >>> log_probs = torch.full((4, 3), -1.0, requires_grad=True)
        >>> log_ratio = torch.tensor([1.0, -1.0, 0.5, 0.0])
        >>> integral_kl(log_probs, log_ratio, group_size=2, baseline="leave_one_out").loss.backward()
    """
    check_surrogate(token_log_probs, group_size, generation_mask)
    check_floats("log_ratio", log_ratio)
    if log_ratio.shape not in (token_log_probs.shape, token_log_probs.shape[:1]):
        raise ValueError(
            f"log_ratio must be [B] or [B, L] for token_log_probs {list(token_log_probs.shape)}, got "
            f"{list(log_ratio.shape)}"
        )
    if time_weight is not None:
        check_per_row("time_weight", time_weight, len(token_log_probs))
    if generation_mask is None:
        generation_mask = torch.ones_like(token_log_probs, dtype=torch.bool)
    advantages = log_ratio_advantages(
        [log_ratio], [generation_mask], group_size, reward=reward, baseline=baseline, scale=scale, clip=clip
    )[0]
    return SurrogateOutput(path_surrogate(token_log_probs, advantages, time_weight), log_ratio.detach(), advantages)


def log_ratio_advantages(
    log_ratios: Sequence[Tensor],
    generation_masks: Sequence[Tensor],
    group_size: int,
    *,
    reward: Callable[[Tensor], Tensor],
    baseline: Baseline | RunningMean,
    scale: Scale,
    clip: float | None,
) -> list[Tensor]:
    """Compute the advantages of a batch in parts, with baselines and scales of all parts together.

    Args:
        log_ratios: of each part, all ``[B]`` or all ``[B, L]``; ``L`` may differ.
        generation_masks: of each part, bool ``[B, L]``.
        group_size: consecutive rows in a group.
        reward: maps log-ratios to rewards.
        baseline: see `group_advantages`.
        scale: see `group_advantages`.
        clip: see `group_advantages`.

    Returns:
        Of each part, shaped as its log-ratios.
    """
    by_token = log_ratios[0].dim() == 2
    parts, masks = log_ratios, [mask.any(1) for mask in generation_masks]
    if by_token:  # Values of a group at one position are compared, and so stand together.
        parts, masks = (
            [rearrange(values, "(n g) l -> (n l g)", g=group_size) for values in each]
            for each in (log_ratios, generation_masks)
        )
    try:
        flat = group_advantages(
            reward(torch.cat(list(parts))),
            group_size,
            scale=scale,
            baseline=baseline,
            clip=clip,
            loss_mask=torch.cat(masks),
        )
    except ValueError:
        if by_token:
            _check_finite(log_ratios, generation_masks, reward)  # Only now, since each question waits for the device.
        raise
    advantages = flat.split([len(part) for part in parts])
    if not by_token:
        return list(advantages)
    return [
        rearrange(part, "(n l g) -> (n g) l", l=ratio.shape[1], g=group_size)
        for part, ratio in zip(advantages, log_ratios, strict=True)
    ]


def path_surrogate(token_log_probs: Tensor, advantages: Tensor, time_weight: Tensor | None) -> Tensor:
    """``-mean_b w_b sum_l A_bl log p(x_bl)``, a scalar; arguments as in `integral_kl`."""
    credit_BL = advantages if advantages.dim() == 2 else advantages[:, None]
    loss_B = -(credit_BL * token_log_probs).sum(1)
    return (loss_B if time_weight is None else time_weight * loss_B).mean()


def check_groups(batch: int, group_size: int) -> None:
    """Raise ValueError unless the batch consists of whole groups."""
    check_count("group_size", group_size)
    if batch % group_size:
        raise ValueError(f"group_size {group_size} does not divide the batch of {batch} samples")


def check_surrogate(token_log_probs: Tensor, group_size: int, generation_mask: Tensor | None) -> None:
    """Raise unless ``token_log_probs`` is a batch ``[B, L]`` of whole groups and the mask fits it."""
    check_floats("token_log_probs", token_log_probs)
    if token_log_probs.dim() != 2 or not token_log_probs.numel():
        raise ValueError(
            f"token_log_probs must be [batch, length] of one sequence and one token or more, got "
            f"{list(token_log_probs.shape)}"
        )
    check_groups(len(token_log_probs), group_size)
    check_mask("generation_mask", generation_mask, token_log_probs.shape, of="token_log_probs")


def _check_finite(
    log_ratios: Sequence[Tensor], generation_masks: Sequence[Tensor], reward: Callable[[Tensor], Tensor]
) -> None:
    for ratio_BL, mask_BL in zip(log_ratios, generation_masks, strict=True):
        wrong = mask_BL & ~reward(ratio_BL).isfinite()
        if bool(wrong.any()):
            sequence, position = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"sequence {sequence}, position {position}: the log-ratio is {ratio_BL[sequence, position].item()}; "
                "look for NaN in the networks that give it, or clip it with a LogRatioReward"
            )
