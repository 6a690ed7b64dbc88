"""Rows of logits that start at multiples of 16 bytes.

Contiguous rows of 50258 classes start at any multiple of two bytes, so that a GPU reads and writes them two bytes at a
time. On CUDA rows are therefore allocated with a stride that is a multiple of 64; the values and the shape are those of
a contiguous tensor.

Shape suffixes: R rows, D features, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from discrete_distill.kernels.autocast import autocast_inputs

ROW_MULTIPLE = 64


def row_stride(columns: int, device: torch.device) -> int:
    """Elements from one row to the next: a multiple of 64 on CUDA; the columns alone elsewhere, where padding buys
    nothing."""
    return -(-columns // ROW_MULTIPLE) * ROW_MULTIPLE if device.type == "cuda" else columns


def empty_rows(like: Tensor, columns: int, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised `[R, columns]` with as many rows as `like`, on its device, and the stride of `row_stride`."""
    strides = (row_stride(columns, like.device), 1)
    return like.new_empty_strided((like.shape[0], columns), strides, dtype=like.dtype if dtype is None else dtype)


def padded_linear(features: Tensor, weight_VD: Tensor, bias_V: Tensor | None = None) -> Tensor:
    """`features @ weight.T + bias` in padded rows (see `row_stride`), differentiable any number of times.

    Args:
        features: `[..., D]`. Under autocast all arguments are cast, as by a linear layer.
        weight_VD: `[V, D]`.
        bias_V: `[V]` or None.

    Returns:
        `[..., V]`, whose rows start at multiples of the stride.
    """
    classes, width = weight_VD.shape
    # Inductor pads by itself, and refuses `out=` of a view.
    if row_stride(classes, features.device) == classes or torch.compiler.is_compiling():
        return functional.linear(features, weight_VD, bias_V)
    kind = features.device.type
    inputs = autocast_inputs(features.reshape(-1, width), weight_VD, bias_V)
    with torch.autocast(kind, enabled=False):
        logits: Tensor = _PaddedLinear.apply(*inputs)
    return logits.view(*features.shape[:-1], classes)


class _PaddedLinear(torch.autograd.Function):
    """A linear layer that writes into padded rows; `out=` knows no gradient."""

    @staticmethod
    def forward(ctx: Any, features_RD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
        ctx.save_for_backward(features_RD, weight_VD)
        logits_RV = empty_rows(features_RD, weight_VD.shape[0])
        if bias_V is None:
            return torch.mm(features_RD, weight_VD.t(), out=logits_RV)
        return torch.addmm(bias_V, features_RD, weight_VD.t(), out=logits_RV)

    @staticmethod
    def backward(ctx: Any, gradient_RV: Tensor) -> tuple[Tensor | None, ...]:
        features_RD, weight_VD = ctx.saved_tensors
        needs_features, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            gradient_RV @ weight_VD if needs_features else None,
            gradient_RV.t() @ features_RD if needs_weight else None,
            gradient_RV.sum(0) if needs_bias else None,
        )
