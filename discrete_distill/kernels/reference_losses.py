"""The token losses in torch: forward and closed-form backward, in chunks of rows.

With `p = softmax(s)` (student) and `q = softmax(t)` (teacher), for one row:

    log_prob = log p_y          entropy = -sum p log p
    forward  = KL(q || p)       reverse = KL(p || q)

    d log_prob / d s_v = [v = y] - p_v            d entropy / d s_v = -p_v (log p_v + entropy)
    d forward  / d s_v = p_v - q_v                d reverse / d s_v = p_v (log p_v - log q_v - reverse)

All sums are taken of logits less their maximum, so that a common offset (logits near 1e4) costs no digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from discrete_distill.kernels.reference_sampling import rows_per_chunk

LOGIT_FLOOR = -1e5
"""Lower logits, -inf included, are read as this: a token that one model forbids and the other does not then
costs a large but finite divergence, and one that both forbid costs nothing."""

STATISTICS = 8
"""Saved rows: log_prob, entropy, forward, reverse, max s, log sum exp(s - max), and these two of t."""


def compute_dtype(student: Tensor) -> torch.dtype:
    """float64 for float64 logits (gradcheck), float32 for all others."""
    return torch.float64 if student.dtype == torch.float64 else torch.float32


def _floored(logits: Tensor, rows: slice | Tensor, last: int, forbidden: int | None, dtype: torch.dtype) -> Tensor:
    values = logits[rows, :last].to(dtype, copy=isinstance(rows, slice)).clamp_(min=LOGIT_FLOOR)
    if forbidden is not None:
        values[:, forbidden] = LOGIT_FLOOR
    return values


def _centre(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`values - max` in place; returns maximum `[R]`, softmax `[R, V]` and log-normaliser `[R]`."""
    top = values.amax(-1, keepdim=True)
    probabilities = values.sub_(top).exp()
    mass = probabilities.sum(-1, keepdim=True)
    return top.squeeze(-1), probabilities.div_(mass), mass.log().squeeze(-1)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Row-wise inner product (sum adds pairwise; bmm would lose a digit at V = 50000)."""
    return (left * right).sum(-1)


def _row_chunks(student: Tensor, active: Tensor | None) -> list[slice | Tensor]:
    """The rows to compute, a chunk at a time; on a CPU only the active ones."""
    count, vocab_size = student.shape
    chunk = rows_per_chunk(student.device, vocab_size)
    if active is not None and student.device.type == "cpu":
        return list(active.nonzero().squeeze(1).split(chunk)) if count else []
    return [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]


def _class_limits(mask_token_id: int, num_classes: int) -> tuple[int, int | None]:
    """Number of leading classes to read, and the one among them that is forbidden."""
    if mask_token_id == num_classes - 1:
        return num_classes - 1, None
    return num_classes, mask_token_id if mask_token_id >= 0 else None


def reference_token_losses(
    student: Tensor,
    teacher: Tensor | None,
    tokens: Tensor,
    active: Tensor | None,
    mask_token_id: int,
    num_classes: int,
) -> Tensor:
    """Statistics `[8, R]` (see STATISTICS), zero in inactive rows and where a missing teacher enters."""
    dtype = compute_dtype(student)
    last, forbidden = _class_limits(mask_token_id, num_classes)
    statistics = torch.zeros((STATISTICS, student.shape[0]), dtype=dtype, device=student.device)
    for rows in _row_chunks(student, active):
        a = _floored(student, rows, last, forbidden, dtype)
        top_s, p, log_mass_s = _centre(a)
        statistics[1, rows] = log_mass_s - _dot(p, a)
        statistics[4, rows], statistics[5, rows] = top_s, log_mass_s
        if teacher is not None:
            b = _floored(teacher, rows, last, forbidden, dtype)
            top_t, q, log_mass_t = _centre(b)
            difference, normaliser = a.sub_(b), log_mass_s - log_mass_t
            statistics[2, rows] = normaliser - _dot(q, difference)
            statistics[3, rows] = _dot(p, difference) - normaliser
            statistics[6, rows], statistics[7, rows] = top_t, log_mass_t
    own = student.gather(1, tokens.clamp(0, num_classes - 1).unsqueeze(1)).squeeze(1).to(dtype).clamp(min=LOGIT_FLOOR)
    own = torch.where(tokens == mask_token_id, LOGIT_FLOOR, own) if mask_token_id >= 0 else own
    own = torch.where((tokens >= 0) & (tokens < num_classes), own, float("nan"))
    statistics[0] = own - statistics[4] - statistics[5]
    return statistics if active is None else torch.where(active, statistics, 0.0)


def reference_token_losses_backward(
    gradients: Tensor,
    student: Tensor,
    teacher: Tensor | None,
    tokens: Tensor,
    active: Tensor | None,
    statistics: Tensor,
    mask_token_id: int,
    num_classes: int,
) -> Tensor:
    """Gradient of the student's logits, `[R, V]` in their dtype, from gradients `[4, R]` of the outputs."""
    dtype = compute_dtype(student)
    last, forbidden = _class_limits(mask_token_id, num_classes)
    result = torch.zeros_like(student, memory_format=torch.contiguous_format)
    for rows in _row_chunks(student, active):
        g_log_prob, g_entropy, g_forward, g_reverse = gradients[:, rows].to(dtype).unsqueeze(-1)
        _, entropy, _, reverse, top_s, log_mass_s, top_t, log_mass_t = statistics[:, rows].unsqueeze(-1)
        a = _floored(student, rows, last, forbidden, dtype)
        low = a <= LOGIT_FLOOR
        a.sub_(top_s).sub_(log_mass_s)
        p = a.exp()
        factor = a.mul_(g_reverse - g_entropy).add_(g_forward - g_log_prob - g_entropy * entropy - g_reverse * reverse)
        if teacher is not None:
            b = _floored(teacher, rows, last, forbidden, dtype).sub_(top_t).sub_(log_mass_t)
            factor.sub_(b * g_reverse).mul_(p).sub_(b.exp_().mul_(g_forward))
        else:
            factor.mul_(p)
        y = tokens[rows].unsqueeze(1)
        inside = (y >= 0) & (y < last)
        factor.scatter_add_(1, y.clamp(0, last - 1), torch.where(inside, g_log_prob, 0.0))
        result[rows, :last] = factor.masked_fill_(low, 0.0).to(result.dtype)
    if active is not None and student.device.type != "cpu":
        result = torch.where(active.unsqueeze(1), result, 0.0)
    return result
