"""Divergences between two categorical distributions, row by row."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...checks import check_floats, check_number, check_same_shape

DivergenceKind = Literal["forward", "reverse", "jeffreys", "js", "tv"]


def token_divergence(
    student_logits: Tensor, teacher_logits: Tensor, *, kind: DivergenceKind = "reverse", beta: float = 0.5
) -> Tensor:
    """Divergence of student ``p`` and teacher ``q`` in every row, differentiable in both, finite at ``-inf`` logits.

    * ``forward``: ``KL(q || p) = sum q log(q / p)``, mass-covering;
    * ``reverse``: ``KL(p || q)``, mode-seeking;
    * ``jeffreys``: ``beta KL(q || p) + (1 - beta) KL(p || q)``; DiDi-Instruct (arXiv 2509.25035) uses 0.5;
    * ``js``: ``beta KL(q || m) + (1 - beta) KL(p || m)`` with ``m = beta q + (1 - beta) p``, bounded (arXiv
      2306.13649);
    * ``tv``: ``1/2 sum |p - q|``.

    Where one distribution has no mass at a token of the other, the logarithm is taken at -100 rather than at minus
    infinity.

    Args:
        student_logits: ``[..., V]``, raw or log-probabilities; computed in fp32 (fp64 stays).
        teacher_logits: ``[..., V]``.
        kind: which one.
        beta: mixes, in ``[0, 1]``.

    Returns:
        ``[...]``: nats (``tv``: probability).

    Raises:
        ValueError: for an unknown kind, a ``beta`` outside ``[0, 1]``, or shapes that differ.
        TypeError: for logits that are no floating-point numbers.
    """
    check_floats("student_logits", student_logits)
    check_floats("teacher_logits", teacher_logits)
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"logits of one shape are compared, got {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    check_number("beta", beta, least=0.0, most=1.0)
    log_p, log_q = _finite_log_softmax(student_logits), _finite_log_softmax(teacher_logits)
    if kind == "forward":
        return kl_divergence(log_q, log_p)
    if kind == "reverse":
        return kl_divergence(log_p, log_q)
    if kind == "jeffreys":
        return beta * kl_divergence(log_q, log_p) + (1.0 - beta) * kl_divergence(log_p, log_q)
    if kind == "js":
        tiny = torch.finfo(log_p.dtype).tiny  # a denormal may be flushed to zero
        mixture = (beta * log_q.exp() + (1.0 - beta) * log_p.exp()).clamp_min(tiny).log()
        return beta * kl_divergence(log_q, mixture) + (1.0 - beta) * kl_divergence(log_p, mixture)
    if kind == "tv":
        return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)
    raise ValueError(f'kind is one of "forward", "reverse", "jeffreys", "js" and "tv", got {kind!r}')


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``sum p (log p - log q)`` over the last axis, nats, of finite log-probabilities.

    Args:
        log_p: ``[..., V]``.
        log_q: ``[..., V]``.

    Raises:
        TypeError: if they are no floating-point numbers.
        ValueError: if their shapes differ.
    """
    check_same_shape(log_p=log_p, log_q=log_q)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _finite_log_softmax(logits: Tensor) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.log_softmax(wide, dim=-1).clamp_min(-100.0)
