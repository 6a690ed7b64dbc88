"""Helpers of the kernel tests: distributions in fp64, and a chi-square threshold without scipy."""

from __future__ import annotations

import torch
from torch import Tensor


def chi_square(counts: Tensor, probabilities: Tensor) -> tuple[float, float]:
    """Statistic and critical value at 4 standard deviations (p 3e-5); bins under 5 expected are pooled."""
    counts, expected = counts.double(), probabilities.double() * counts.sum()
    small = expected < 5
    if small.any():
        counts = torch.cat([counts[~small], counts[small].sum()[None]])
        expected = torch.cat([expected[~small], expected[small].sum()[None]])
    if expected[-1] == 0:
        assert counts[-1] == 0, "an impossible token was drawn"
        counts, expected = counts[:-1], expected[:-1]
    freedom = len(expected) - 1
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    critical = freedom * (1 - 2 / (9 * freedom) + 4 * (2 / (9 * freedom)) ** 0.5) ** 3  # Wilson and Hilferty
    return statistic, critical


def distribution(
    logits: Tensor,
    temperature: float = 1.0,
    mask_token_id: int | None = None,
    tilt: Tensor | None = None,
    tilt_scale: float = 0.0,
) -> Tensor:
    """Log-probabilities `[R, V]` in fp64 of what `sample_rows` says it draws from."""
    values = logits.double() / temperature
    if tilt is not None:
        values = values + tilt_scale * tilt.double().clamp(-1, 1)
    if mask_token_id is not None:
        values = values.clone()
        values[:, mask_token_id] = float("-inf")
    return torch.log_softmax(values, -1)


def entropy_of(log_probs: Tensor) -> Tensor:
    """Entropy `[R]` of log-probabilities `[R, V]`, with 0 log 0 = 0."""
    return -torch.where(log_probs > float("-inf"), log_probs.exp() * log_probs, 0.0).sum(-1)


def plain_losses(student: Tensor, teacher: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four losses by plain autograd torch, in the dtype of the arguments."""
    p, q = torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)
    return (
        p.gather(1, tokens[:, None])[:, 0],
        -(p.exp() * p).sum(-1),
        (q.exp() * (q - p)).sum(-1),
        (p.exp() * (p - q)).sum(-1),
    )
