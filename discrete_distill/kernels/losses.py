"""`token_losses`: log-probability, entropy and both KL divergences, from one read of the logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from discrete_distill.kernels.dispatch import Backend, check_backend, resolve_backend
from discrete_distill.kernels.padding import empty_rows
from discrete_distill.kernels.reference_losses import (
    STATISTICS,
    compute_dtype,
    reference_token_losses,
    reference_token_losses_backward,
)
from discrete_distill.kernels.sampling import check_mask_token

_LOGIT_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class TokenLosses(NamedTuple):
    """What `token_losses` returns: one number a row, in nats, float32 (float64 for float64 logits).

    Examples:
        >>> student_logits, teacher_logits = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -1e9]])
        >>> losses = token_losses(student_logits, teacher_logits, torch.tensor([0]))
        >>> losses.log_prob, losses.entropy, losses.forward_kl  # -log(3), log(3) and log(3/2)
        (tensor([-1.0986]), tensor([1.0986]), tensor([0.4055]))
    """

    log_prob: Tensor
    """`[R]` log p(token)."""
    entropy: Tensor
    """`[R]` -sum p log p of the student."""
    forward_kl: Tensor | None
    """`[R]` KL(teacher || student); None without a teacher."""
    reverse_kl: Tensor | None
    """`[R]` KL(student || teacher); None without a teacher."""


def _uses_triton(backend: str, student: Tensor, teacher: Tensor | None) -> bool:
    """float64 always goes to the reference: the kernels compute in fp32."""
    if student.dtype == torch.float64 or (teacher is not None and teacher.dtype == torch.float64):
        return False
    return resolve_backend(backend, student.device) == "triton"


_SCHEMA = (
    "(Tensor student, Tensor? teacher, Tensor tokens, Tensor? active, SymInt mask_token_id, "
    "SymInt num_classes, str backend) -> Tensor"
)
_BACKWARD_SCHEMA = (
    "(Tensor gradients, Tensor student, Tensor? teacher, Tensor tokens, Tensor? active, Tensor statistics, "
    "SymInt mask_token_id, SymInt num_classes, str backend) -> Tensor"
)


@torch.library.custom_op("discrete_distill::token_losses", mutates_args=(), schema=_SCHEMA)
def _token_losses_op(
    student: Tensor,
    teacher: Tensor | None,
    tokens: Tensor,
    active: Tensor | None,
    mask_token_id: int,
    num_classes: int,
    backend: str,
) -> Tensor:
    if _uses_triton(backend, student, teacher):
        from discrete_distill.kernels.triton_losses import triton_token_losses

        return triton_token_losses(student, teacher, tokens, active, mask_token_id, num_classes)
    return reference_token_losses(student, teacher, tokens, active, mask_token_id, num_classes)


@_token_losses_op.register_fake
def _(student: Tensor, *_: Any) -> Tensor:
    return student.new_empty((STATISTICS, student.shape[0]), dtype=compute_dtype(student))


@torch.library.custom_op("discrete_distill::token_losses_backward", mutates_args=(), schema=_BACKWARD_SCHEMA)
def _token_losses_backward_op(
    gradients: Tensor,
    student: Tensor,
    teacher: Tensor | None,
    tokens: Tensor,
    active: Tensor | None,
    statistics: Tensor,
    mask_token_id: int,
    num_classes: int,
    backend: str,
) -> Tensor:
    arguments = (gradients, student, teacher, tokens, active, statistics, mask_token_id, num_classes)
    if _uses_triton(backend, student, teacher):
        from discrete_distill.kernels.triton_losses import triton_token_losses_backward

        return triton_token_losses_backward(*arguments)
    result = reference_token_losses_backward(*arguments)
    padded = empty_rows(student, student.shape[1])
    return result if padded.stride() == result.stride() else padded.copy_(result)


@_token_losses_backward_op.register_fake
def _(gradients: Tensor, student: Tensor, *_: Any) -> Tensor:
    return empty_rows(student, student.shape[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    student, teacher, tokens, active, ctx.mask_token_id, ctx.num_classes, ctx.backend = inputs
    ctx.save_for_backward(student, teacher, tokens, active, output)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    student, teacher, tokens, active, statistics = ctx.saved_tensors
    result = _token_losses_backward_op(
        gradient[:4].contiguous(), student, teacher, tokens, active, statistics,
        ctx.mask_token_id, ctx.num_classes, ctx.backend,
    )  # fmt: skip
    d_teacher = None
    if ctx.needs_input_grad[1]:  # The divergences with the two models exchanged.
        exchanged = torch.stack((*torch.zeros_like(gradient[:2]), gradient[3], gradient[2]))
        d_teacher = _token_losses_backward_op(
            exchanged, teacher, student, tokens, active, statistics[[0, 1, 3, 2, 6, 7, 4, 5]],
            ctx.mask_token_id, ctx.num_classes, ctx.backend,
        )  # fmt: skip
    return result, d_teacher, None, None, None, None, None


_token_losses_op.register_autograd(_backward, setup_context=_save)


def check_token_rows(
    shape: torch.Size,
    device: torch.device,
    tokens: Tensor,
    weight: Tensor | None,
    name: str = "student_logits_RV",
) -> None:
    """Raise unless `tokens` is int64 `[R]` and `weight` is None or `[R]`, both on `device`."""
    if tokens.dtype != torch.int64:
        raise TypeError(f"tokens_R is {tokens.dtype}; pass torch.int64")
    for argument, tensor in (("tokens_R", tokens), ("weight_R", weight)):
        if tensor is None:
            continue
        if tensor.shape != shape[:1]:
            raise ValueError(
                f"{argument} has shape {tuple(tensor.shape)} and {name} has {shape[0]} rows; pass one a row"
            )
        if tensor.device != device:
            raise ValueError(f"{argument} is on {tensor.device} and {name} on {device}; move one of them")


def _check_logits(student: Tensor, teacher: Tensor | None) -> None:
    for name, tensor in (("student_logits_RV", student), ("teacher_logits_RV", teacher)):
        if tensor is None:
            continue
        if tensor.dtype not in _LOGIT_DTYPES:
            raise TypeError(f"{name} is {tensor.dtype}; pass bfloat16, float16, float32 or float64")
        if tensor.dim() != 2 or tensor.shape[1] == 0:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; pass [R, V] with V > 0 (flatten batch and length)"
            )
    if teacher is not None and (teacher.shape != student.shape or teacher.device != student.device):
        raise ValueError(
            f"teacher_logits_RV is {tuple(teacher.shape)} on {teacher.device} and student_logits_RV is "
            f"{tuple(student.shape)} on {student.device}; they must have one shape and device"
        )


def check_num_classes(num_classes: int | None, columns: int) -> int:
    """Number of classes of `columns` columns; ValueError when it lies outside."""
    classes = columns if num_classes is None else num_classes
    if not 0 < classes <= columns:
        raise ValueError(f"num_classes is {num_classes} and the logits have {columns} columns")
    return classes


def token_losses(
    student_logits_RV: Tensor,
    teacher_logits_RV: Tensor | None,
    tokens_R: Tensor,
    *,
    weight_R: Tensor | None = None,
    mask_token_id: int | None = None,
    num_classes: int | None = None,
    backend: Backend = "auto",
) -> TokenLosses:
    r"""Log-probability of a token, entropy, and KL divergences from and to a teacher: per row, differentiable.

    .. math:: \log p_y, \quad -\sum_v p_v \log p_v, \quad \mathrm{KL}(q \| p), \quad \mathrm{KL}(p \| q),
              p = \mathrm{softmax}(\text{student}),\ q = \mathrm{softmax}(\text{teacher})

    The terms of the student's loss of DiDi-Instruct (arXiv 2509.25035): policy gradient, entropy and the two
    regularisers. One read of the logits forward, one read and one write backward; differentiable once, with
    respect to the student only.

    Args:
        student_logits_RV: `[R, V]` raw logits, bf16, fp16, fp32 (fp64: the reference, in fp64). Never written
            to. Logits below -1e5, -inf included, are read as -1e5 and get no gradient, so that all values
            stay finite.
        teacher_logits_RV: like the student's, any of these dtypes, taken as constant; None when only the
            first two are wanted.
        tokens_R: `[R]` int64; a row whose token is outside `[0, num_classes)` has log_prob NaN unless its
            weight is zero.
        weight_R: `[R]`, any dtype; **only whether it is zero matters**: such rows are skipped (value 0,
            gradient 0). The outputs are not multiplied by it, since each of the four usually has a weight of
            its own.
        mask_token_id: a class with probability zero in both models; the last one is the fast case. None:
            there is none.
        num_classes: classes from this one on are padding (a head padded from 50258 to 50304 outputs): no
            probability, no gradient. None: all `V` are classes.
        backend: "auto", "torch" or "triton"; the environment variable DISCRETE_DISTILL_BACKEND replaces
            "auto".

    Returns:
        `TokenLosses(log_prob, entropy, forward_kl, reverse_kl)`, each `[R]` in nats.

    Raises:
        ValueError: shapes or devices that do not fit, a mask token or `num_classes` outside the vocabulary,
            or Triton chosen where it cannot run.
        TypeError: a dtype that does not fit.

    Examples:
        >>> logits = torch.tensor([[1.0, 0.0]]).log().requires_grad_()  # Probabilities 1 and 0.
        >>> losses = token_losses(logits, torch.zeros(1, 2), torch.tensor([0]))
        >>> losses.log_prob.item(), losses.reverse_kl.item()  # log(1) and log(2)
        (0.0, 0.693...)
    """
    _check_logits(student_logits_RV, teacher_logits_RV)
    check_token_rows(student_logits_RV.shape, student_logits_RV.device, tokens_R, weight_R)
    check_backend(backend)
    classes = check_num_classes(num_classes, student_logits_RV.shape[1])
    statistics = _token_losses_op(
        student_logits_RV,
        None if teacher_logits_RV is None else teacher_logits_RV.detach(),
        tokens_R,
        None if weight_R is None else weight_R != 0,
        check_mask_token(mask_token_id, classes),
        classes,
        backend,
    )
    log_prob, entropy, forward_kl, reverse_kl = statistics[:4].unbind(0)
    if teacher_logits_RV is None:
        return TokenLosses(log_prob, entropy, None, None)
    return TokenLosses(log_prob, entropy, forward_kl, reverse_kl)
