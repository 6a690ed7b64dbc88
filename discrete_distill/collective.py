"""Means over the processes of a run. With one process each returns the mean of what it was given."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """Processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(value: Tensor) -> Tensor:
    """Elementwise; all processes must call it, with one shape."""
    if num_processes() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / num_processes()


def mean_of_all(values: Tensor) -> Tensor:
    """Scalar mean of the elements that all processes hold, however many each has; all must call it."""
    total = torch.stack((values.sum(), values.new_tensor(float(values.numel()))))
    if num_processes() > 1:
        dist.all_reduce(total)
    return total[0] / total[1]
