"""Sampling and losses from features and the head that projects them, a chunk of rows at a time.

All logits of a batch of 16 x 1024 rows over 50258 classes are 3.3 GB in fp32; a chunk of 384 rows is 77 MB,
and its second reader finds most of it in the cache of the GPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from discrete_distill.checks import check_floats
from discrete_distill.kernels.autocast import autocast_inputs
from discrete_distill.kernels.dispatch import Backend, check_backend
from discrete_distill.kernels.losses import (
    TokenLosses,
    _token_losses_backward_op,
    _token_losses_op,
    check_num_classes,
    check_token_rows,
)
from discrete_distill.kernels.padding import padded_linear
from discrete_distill.kernels.sampling import SampledRows, check_mask_token, sample_rows

DEFAULT_CHUNK_ROWS = 384


class _Setting(NamedTuple):
    mask_token_id: int
    num_classes: int
    chunk_rows: int
    backend: str


def chunks(count: int, size: int) -> list[slice]:
    """Consecutive slices of at most ``size`` rows."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _part(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _teacher_logits(features: Tensor | None, weight: Tensor | None, bias: Tensor | None, rows: slice) -> Tensor | None:
    return None if features is None or weight is None else padded_linear(features[rows], weight, bias)


class _LinearTokenLosses(torch.autograd.Function):
    """Logits are computed forward and again backward; the weight's gradient is summed in fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher_features: Tensor | None,
        teacher_weight: Tensor | None,
        teacher_bias: Tensor | None,
        tokens: Tensor,
        active: Tensor | None,
        setting: _Setting,
    ) -> Tensor:
        parts = []
        for rows in chunks(features.shape[0], setting.chunk_rows):
            student = padded_linear(features[rows], weight, bias)
            teacher = _teacher_logits(teacher_features, teacher_weight, teacher_bias, rows)
            parts.append(
                _token_losses_op(
                    student,
                    teacher,
                    tokens[rows],
                    _part(active, rows),
                    setting.mask_token_id,
                    setting.num_classes,
                    setting.backend,
                )
            )
        statistics = torch.cat(parts, 1)
        ctx.save_for_backward(
            features, weight, bias, teacher_features, teacher_weight, teacher_bias, tokens, active, statistics
        )
        ctx.setting = setting
        return statistics[:4].clone()

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias, teacher_features, teacher_weight, teacher_bias, tokens, active, statistics = (
            ctx.saved_tensors
        )
        setting: _Setting = ctx.setting
        needs_features, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        exact = statistics.dtype
        d_features = torch.empty_like(features) if needs_features else None
        d_weight = torch.zeros_like(weight, dtype=exact) if needs_weight else None
        d_bias = torch.zeros_like(bias, dtype=exact) if needs_bias else None
        for rows in chunks(features.shape[0], setting.chunk_rows):
            student = padded_linear(features[rows], weight, bias)
            d_logits = _token_losses_backward_op(
                gradients[:, rows].contiguous(), student,
                _teacher_logits(teacher_features, teacher_weight, teacher_bias, rows),
                tokens[rows], _part(active, rows), statistics[:, rows].contiguous(),
                setting.mask_token_id, setting.num_classes, setting.backend,
            )  # fmt: skip
            del student
            if d_features is not None:
                torch.mm(d_logits, weight, out=d_features[rows])
            if d_weight is not None:
                if weight.dtype == exact:
                    d_weight.addmm_(d_logits.t(), features[rows])
                else:
                    d_weight.add_(d_logits.t() @ features[rows])
            if d_bias is not None:
                d_bias.add_(d_logits.sum(0, dtype=exact))
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        d_bias = None if d_bias is None else d_bias.to(bias.dtype)
        return d_features, d_weight, d_bias, None, None, None, None, None, None


def _check_head(name: str, features: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_floats(f"{name}features", features)
    check_floats(f"{name}weight", weight)
    if features.dim() != 2 or weight.dim() != 2 or features.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{name}features have shape {tuple(features.shape)} and {name}weight {tuple(weight.shape)}; "
            "pass [R, D] and [V, D]"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{name}bias has shape {tuple(bias.shape)}; pass [{weight.shape[0]}] or None")
    given = [features, weight, *([] if bias is None else [bias])]
    if len({each.dtype for each in given}) > 1 and not torch.is_autocast_enabled(features.device.type):
        dtypes = ", ".join(str(each.dtype) for each in given)
        raise TypeError(f"{name}features, weight and bias must have one dtype outside of autocast, got {dtypes}")
    if len({tensor.device for tensor in (features, weight)}) > 1:
        raise ValueError(
            f"{name}features are on {features.device} and {name}weight on {weight.device}; move one of them"
        )


def linear_token_losses(
    features_RD: Tensor,
    weight_VD: Tensor,
    tokens_R: Tensor,
    *,
    bias_V: Tensor | None = None,
    teacher_features_RD: Tensor | None = None,
    teacher_weight_VD: Tensor | None = None,
    teacher_bias_V: Tensor | None = None,
    weight_R: Tensor | None = None,
    mask_token_id: int | None = None,
    num_classes: int | None = None,
    chunk_rows: int = DEFAULT_CHUNK_ROWS,
    backend: Backend = "auto",
) -> TokenLosses:
    r"""`token_losses` of `features @ weight.T + bias`, with at most `chunk_rows` rows of logits at a time.

    .. math:: \text{student}_r = W f_r + b, \qquad \text{teacher}_r = W' f'_r + b'

    The logits are computed once forward and once backward; the gradient of the weight is summed over chunks
    in fp32 (arXiv 2509.25035 for the losses; arXiv 2411.09009 and 2410.10989 for cross-entropy in this
    manner).

    Args:
        features_RD: `[R, D]` student features, differentiable. Under autocast cast like the input of a linear
            layer.
        weight_VD: `[V, D]` the student's head, differentiable.
        tokens_R: `[R]` int64.
        bias_V: `[V]` or None, differentiable.
        teacher_features_RD, teacher_weight_VD, teacher_bias_V: the teacher's, with any width `D` of its own;
            constants. None: no teacher, and no divergences.
        weight_R: `[R]`; rows where it is zero give 0 and no gradient, but still pass the head: leave them out
            if you can.
        mask_token_id, num_classes, backend: as in `token_losses`.
        chunk_rows: rows of logits held at once.

    Returns:
        `TokenLosses`, each `[R]` in nats, differentiable once.

    Raises:
        ValueError: shapes or devices that do not fit, `chunk_rows < 1`, half of a teacher, or as in
            `token_losses`.
        TypeError: a dtype that does not fit.

    Examples:
        >>> features, head = torch.randn(4, 16, generator=generator), torch.zeros(9, 16)
        >>> linear_token_losses(features, head, torch.arange(4), mask_token_id=8).entropy  # log(8)
        tensor([2.0794, 2.0794, 2.0794, 2.0794])
    """
    _check_head("", features_RD, weight_VD, bias_V)
    check_token_rows(features_RD.shape, features_RD.device, tokens_R, weight_R, "features_RD")
    check_backend(backend)
    if (teacher_features_RD is None) != (teacher_weight_VD is None):
        raise ValueError("teacher_features_RD and teacher_weight_VD go together; pass both or neither")
    if teacher_features_RD is not None and teacher_weight_VD is not None:
        _check_head("teacher ", teacher_features_RD, teacher_weight_VD, teacher_bias_V)
        theirs = teacher_features_RD.shape[0], teacher_weight_VD.shape[0]
        ours = features_RD.shape[0], weight_VD.shape[0]
        if theirs != ours:
            raise ValueError(f"the teacher has (rows, classes) {theirs} and the student {ours}; make them agree")
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}; pass at least 1 ({DEFAULT_CHUNK_ROWS} is a good start)")
    classes = check_num_classes(num_classes, weight_VD.shape[0])
    setting = _Setting(check_mask_token(mask_token_id, classes), classes, chunk_rows, backend)
    teacher = (teacher_features_RD, teacher_weight_VD, teacher_bias_V)
    constants = (None if part is None else part.detach() for part in teacher)
    # The backward pass runs outside of autocast.
    inputs = autocast_inputs(features_RD, weight_VD, bias_V, *constants)
    outputs = _LinearTokenLosses.apply(*inputs, tokens_R, None if weight_R is None else weight_R != 0, setting)
    log_prob, entropy, forward_kl, reverse_kl = outputs.unbind(0)
    if teacher_features_RD is None:
        return TokenLosses(log_prob, entropy, None, None)
    return TokenLosses(log_prob, entropy, forward_kl, reverse_kl)


def _cut_cross_entropy(provider: str, features: Tensor, mask_token_id: int | None, classes: int) -> bool:
    """Whether Apple's kernel runs: it knows no forbidden class, but the last can be cut off the head."""
    if provider == "chunked":
        return False
    reasons = []
    if features.device.type != "cuda":
        reasons.append(f"the features are on {features.device}")
    if importlib.util.find_spec("cut_cross_entropy") is None:
        reasons.append("the package cut_cross_entropy is not installed")
    if mask_token_id is not None and mask_token_id != classes - 1:
        reasons.append(f"mask_token_id {mask_token_id} is not the last class")
    if provider == "cut_cross_entropy" and reasons:
        raise ValueError(f"provider 'cut_cross_entropy' cannot run: {'; '.join(reasons)}. Pass provider='chunked'")
    return not reasons


def linear_cross_entropy(
    features_RD: Tensor,
    weight_VD: Tensor,
    tokens_R: Tensor,
    *,
    bias_V: Tensor | None = None,
    weight_R: Tensor | None = None,
    mask_token_id: int | None = None,
    num_classes: int | None = None,
    chunk_rows: int = DEFAULT_CHUNK_ROWS,
    provider: Literal["auto", "chunked", "cut_cross_entropy"] = "auto",
    backend: Backend = "auto",
) -> Tensor:
    r"""Cross-entropy of a linear head per row, `-log softmax(W f + b)_y`, without holding all the logits.

    On CUDA it is that of cut-cross-entropy (arXiv 2411.09009, in its exact form) where that package is
    installed and the mask token can be cut off the end of the head; otherwise `linear_token_losses`. (Liger's
    kernel, arXiv 2410.10989, scales its gradient by one number for all rows, so that it cannot weigh them.)

    Args:
        features_RD, weight_VD, tokens_R, bias_V, weight_R, mask_token_id, num_classes, chunk_rows, backend:
            as in `linear_token_losses`.
        provider: "auto", or one of the two by name.

    Returns:
        `[R]` nats, 0 where `weight_R` is zero; not multiplied by it.

    Raises:
        ValueError: as in `linear_token_losses`, or a provider that is unknown or cannot run.
        TypeError: a dtype that does not fit.

    Examples:
        >>> features, head = torch.randn(4, 16, generator=generator), torch.zeros(9, 16)
        >>> linear_cross_entropy(features, head, torch.arange(4), mask_token_id=8)  # log(8)
        tensor([2.0794, 2.0794, 2.0794, 2.0794])
    """
    if provider not in ("auto", "chunked", "cut_cross_entropy"):
        raise ValueError(f"provider is {provider!r}; pass 'auto', 'chunked' or 'cut_cross_entropy'")
    _check_head("", features_RD, weight_VD, bias_V)
    check_token_rows(features_RD.shape, features_RD.device, tokens_R, weight_R, "features_RD")
    classes = weight_VD.shape[0] if num_classes is None else num_classes
    if _cut_cross_entropy(provider, features_RD, mask_token_id, classes):
        from cut_cross_entropy import linear_cross_entropy as external  # type: ignore[import-not-found, unused-ignore]

        last = classes if mask_token_id is None else classes - 1
        last_bias = None if bias_V is None else bias_V[:last]
        features, weight, bias = autocast_inputs(features_RD, weight_VD[:last], last_bias)
        targets = tokens_R if weight_R is None else torch.where(weight_R != 0, tokens_R, -100)
        loss: Tensor = external(
            features, weight, targets, bias=bias, ignore_index=-100, reduction="none", impl="cce_exact"
        )
        return loss
    losses = linear_token_losses(
        features_RD,
        weight_VD,
        tokens_R,
        bias_V=bias_V,
        weight_R=weight_R,
        mask_token_id=mask_token_id,
        num_classes=num_classes,
        chunk_rows=chunk_rows,
        backend=backend,
    )
    return -losses.log_prob


def sample_features(
    features_RD: Tensor,
    project: Callable[[Tensor], Tensor],
    *,
    seed: int | Tensor,
    positions_R: Tensor,
    step: int | Tensor,
    num_candidates: int = 1,
    temperature: float = 1.0,
    mask_token_id: int | None = None,
    active_R: Tensor | None = None,
    return_entropy: bool = False,
    chunk_rows: int = DEFAULT_CHUNK_ROWS,
    backend: Backend = "auto",
) -> SampledRows:
    """`sample_rows` of `project(features)`, a chunk of rows at a time; without gradient.

    The same tokens as from `sample_rows(project(features), ...)`, since every draw is named by its global row
    (up to what a matrix product of another height rounds differently).

    Args:
        features_RD: `[R, D]` features of the denoiser.
        project: `[r, D] -> [r, V]` logits, for instance the denoiser's own `project`, or its `projection()`.
        chunk_rows: rows of logits held at once.
        seed, positions_R, step, num_candidates, temperature, mask_token_id, active_R, return_entropy, backend: as
            in `sample_rows`. Inactive rows still pass `project`: leave them out if you can.

    Returns:
        `SampledRows`.

    Raises:
        ValueError: `chunk_rows < 1`, no rows, or as in `sample_rows`.
        TypeError: as in `sample_rows`.

    Examples:
        >>> features = student.features(x_t, t).flatten(0, 1)  # [128, 16]
        >>> drawn = sample_features(
        ...     features, student.project, seed=0, positions_R=torch.arange(128), step=0, mask_token_id=8
        ... )
        >>> drawn.tokens.shape, bool((drawn.tokens < 8).all())
        (torch.Size([128, 1]), True)
    """
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}; pass at least 1 ({DEFAULT_CHUNK_ROWS} is a good start)")
    if features_RD.dim() != 2 or features_RD.shape[0] == 0:
        raise ValueError(f"features_RD has shape {tuple(features_RD.shape)}; pass [R, D] with R > 0")
    parts = []
    with torch.no_grad():
        for rows in chunks(features_RD.shape[0], chunk_rows):
            parts.append(
                sample_rows(
                    project(features_RD[rows]),
                    seed=seed,
                    positions_R=positions_R[rows],
                    step=step,
                    num_candidates=num_candidates,
                    temperature=temperature,
                    mask_token_id=mask_token_id,
                    active_R=_part(active_R, rows),
                    return_entropy=return_entropy,
                    backend=backend,
                )
            )
    entropies = [part.entropy for part in parts if part.entropy is not None]
    return SampledRows(
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.log_probs for part in parts]),
        torch.cat(entropies) if return_entropy else None,
    )
