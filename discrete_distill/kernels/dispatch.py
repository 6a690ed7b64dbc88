"""Which implementation runs: the torch reference or the Triton kernels."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "torch", "triton"]

ENVIRONMENT_VARIABLE = "DISCRETE_DISTILL_BACKEND"
MINIMUM_CAPABILITY = (8, 0)
_NAMES = ("auto", "torch", "triton")
_UINT64 = 2**64


def check_backend(backend: str) -> None:
    """Raise ValueError unless `backend` is one of the three names."""
    if backend not in _NAMES:
        raise ValueError(f"backend is {backend!r}; pass one of {', '.join(map(repr, _NAMES))}")


def interpreting() -> bool:
    """Whether Triton is set to interpret its kernels on the CPU (for tests; slow)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _why_not_triton(device: torch.device) -> str | None:
    """The reason why the Triton kernels cannot run on `device`, or None when they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; install it (pip install triton) or pass backend='torch'"
    if interpreting():
        return None
    if device.type != "cuda":
        return f"the tensors are on {device}; move them to a CUDA device, or pass backend='auto' or 'torch'"
    if torch.version.hip is not None:
        return "the kernels hold PTX instructions and this is a ROCm build; pass backend='torch'"
    capability = torch.cuda.get_device_capability(device)
    if capability < MINIMUM_CAPABILITY:
        return f"{device} has compute capability {capability}, below {MINIMUM_CAPABILITY}; pass backend='torch'"
    return None


def resolve_backend(backend: str, device: torch.device) -> Literal["torch", "triton"]:
    """Turn a requested backend into the one that runs.

    `auto` follows the environment variable DISCRETE_DISTILL_BACKEND where it is set; otherwise it takes
    Triton on a CUDA device that can run it, and torch elsewhere. An explicit `torch` or `triton` is obeyed.

    Raises:
        ValueError: an unknown name, or Triton chosen where it cannot run (with the reason and the remedy).
    """
    check_backend(backend)
    if backend == "auto":
        backend = os.environ.get(ENVIRONMENT_VARIABLE, "auto") or "auto"
        if backend not in _NAMES:
            raise ValueError(f"{ENVIRONMENT_VARIABLE} is {backend!r}; set it to one of {', '.join(map(repr, _NAMES))}")
    if backend == "torch":
        return "torch"
    if backend == "auto" and device.type != "cuda":
        return "torch"
    reason = _why_not_triton(device)
    if reason is None:
        return "triton"
    if backend == "auto":
        return "torch"
    raise ValueError(f"backend 'triton' cannot run: {reason}")


def scalar_tensor(name: str, value: int | Tensor, device: torch.device) -> Tensor:
    """`value` as an int64 tensor without dimensions on `device`; made by a fill, so it can be captured in a
    CUDA graph.

    Raises:
        TypeError: not an integer.
        ValueError: a tensor of more than one element, or on another device.
    """
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{name} is a tensor of {value.dtype}; pass an int or an int64 tensor of one element")
        if value.numel() != 1:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; pass an int or an int64 tensor of one element")
        if value.device != device:
            raise ValueError(f"{name} is on {value.device} and the other tensors are on {device}; move it there once")
        return value.reshape(()).to(torch.int64)
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); pass an int or an int64 tensor of one element")
    if isinstance(value, int):
        value = value % _UINT64
        value = value - _UINT64 if value >= _UINT64 // 2 else value
    return torch.full((), value, dtype=torch.int64, device=device)
