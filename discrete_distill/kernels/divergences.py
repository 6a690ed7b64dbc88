"""Divergences between two categorical distributions that are given by logits.

The KL divergences are those of `token_losses`: one operation, with one treatment of impossible tokens, computes every
KL divergence of the library, on CPU and GPU.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from discrete_distill.checks import check_floats, check_number
from discrete_distill.kernels.dispatch import Backend, check_backend
from discrete_distill.kernels.losses import _token_losses_op, check_num_classes
from discrete_distill.kernels.reference_losses import LOGIT_FLOOR
from discrete_distill.kernels.sampling import check_mask_token

DivergenceKind = Literal["forward", "reverse", "jeffreys", "js", "tv"]


def token_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    kind: DivergenceKind = "reverse",
    beta: float = 0.5,
    mask_token_id: int | None = None,
    num_classes: int | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Compute a divergence of student ``p`` and teacher ``q`` at every position.

    * ``forward``: ``KL(q || p) = sum q log(q / p)``, mass-covering;
    * ``reverse``: ``KL(p || q)``, mode-seeking;
    * ``jeffreys``: ``beta KL(q || p) + (1 - beta) KL(p || q)``; DiDi-Instruct (arXiv 2509.25035) uses 0.5;
    * ``js``: ``beta KL(q || m) + (1 - beta) KL(p || m)`` with ``m = beta q + (1 - beta) p``, bounded (arXiv
      2306.13649);
    * ``tv``: ``1/2 sum |p - q|``, bounded.

    All are finite: logits below -1e5, -inf included, are read as -1e5 and get no gradient, as in `token_losses`. A
    token that both models rule out adds nothing. One that a single model rules out, where the KL divergence is
    infinite, adds about 1e5 nats times its probability under the other model.

    Args:
        student_logits: ``[..., V]``, raw or log-probabilities, differentiable once; computed in fp32 (fp64 stays).
        teacher_logits: ``[..., V]``, differentiable once.
        kind: which divergence.
        beta: weight of the first term of ``jeffreys`` and ``js``, in ``[0, 1]``.
        mask_token_id: a class with probability zero in both models; None: there is none.
        num_classes: classes from this one on are padding, without probability; None: all ``V`` are classes.
        backend: "auto", "torch" or "triton", of the KL divergences; see `token_losses`.

    Returns:
        ``[...]``: nats (``tv``: probability).

    Raises:
        ValueError: for an unknown kind or backend, a ``beta`` outside ``[0, 1]``, a mask token or ``num_classes``
            outside the vocabulary, or shapes that differ.
        TypeError: for logits that are no floating-point numbers.

    Examples:
        >>> student, teacher = torch.randn(2, 8, 50), torch.randn(2, 8, 50)
        >>> token_divergence(student, teacher, kind="jeffreys", mask_token_id=49).shape
        torch.Size([2, 8])
    """
    check_floats("student_logits", student_logits)
    check_floats("teacher_logits", teacher_logits)
    if student_logits.shape != teacher_logits.shape or not student_logits.dim() or not student_logits.shape[-1]:
        raise ValueError(
            f"logits of one shape [..., V] are compared, got {tuple(student_logits.shape)} and "
            f"{tuple(teacher_logits.shape)}"
        )
    if kind not in ("forward", "reverse", "jeffreys", "js", "tv"):
        raise ValueError(f'kind is one of "forward", "reverse", "jeffreys", "js" and "tv", got {kind!r}')
    check_number("beta", beta, minimum=0.0, maximum=1.0)
    check_backend(backend)
    classes = check_num_classes(num_classes, student_logits.shape[-1])
    mask = check_mask_token(mask_token_id, classes)
    student, teacher = (logits.reshape(-1, logits.shape[-1]) for logits in (student_logits, teacher_logits))
    if kind in ("js", "tv"):
        log_p, log_q = (_log_probs(logits, mask, classes) for logits in (student, teacher))
        value = _shannon(log_p, log_q, beta) if kind == "js" else 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)
    else:
        forward_kl, reverse_kl = _kl_divergences(student, teacher, mask, classes, backend)
        mix = {"forward": 1.0, "reverse": 0.0}.get(kind, beta)
        value = mix * forward_kl + (1.0 - mix) * reverse_kl
    return value.view(student_logits.shape[:-1])


def _kl_divergences(
    student: Tensor, teacher: Tensor, mask: int = -1, classes: int | None = None, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """``KL(q || p)`` and ``KL(p || q)``, ``[N]`` each."""
    tokens = torch.zeros(len(student), dtype=torch.int64, device=student.device)  # Of no bearing on the divergences.
    classes = student.shape[1] if classes is None else classes
    statistics = _token_losses_op(student, teacher, tokens, None, mask, classes, backend)
    return statistics[2], statistics[3]


def _shannon(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    log_beta, log_rest = (math.log(share) if share else -math.inf for share in (beta, 1.0 - beta))
    mixture = torch.logaddexp(log_q + log_beta, log_p + log_rest)
    return beta * _kl_divergences(mixture, log_q)[0] + (1.0 - beta) * _kl_divergences(mixture, log_p)[0]


def _log_probs(logits: Tensor, mask: int, classes: int) -> Tensor:
    """Log-probabilities of floored logits, differentiable."""
    wide = logits[:, :classes].to(torch.promote_types(logits.dtype, torch.float32)).clamp(min=LOGIT_FLOOR)
    if mask >= 0:
        wide = torch.where(torch.arange(classes, device=wide.device) == mask, LOGIT_FLOOR, wide)
    return wide.log_softmax(-1)
