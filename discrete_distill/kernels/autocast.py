"""Casts of the inputs of a linear layer under autocast, for operations that autocast does not handle."""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """Dtype in which a linear layer reads the tensor under the current autocast setting.

    Returns:
        The dtype of autocast where it is enabled on the device of the tensor, else the dtype of the tensor. PyTorch
        leaves float64 as it is under autocast, and so does this function.
    """
    kind = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return tensor.dtype
    return torch.get_autocast_dtype(kind)


def autocast_inputs(*tensors: Tensor | None) -> list[Tensor | None]:
    """Cast tensors as autocast casts the inputs of a linear layer.

    Returns:
        The tensors in the dtypes of `autocast_dtype`.
    """
    return [None if tensor is None else tensor.to(autocast_dtype(tensor)) for tensor in tensors]
