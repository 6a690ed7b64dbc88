"""Means over the processes of a run. With one process each returns the mean of what it was given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """Processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def leaving_processes() -> Iterator[None]:
    """On a normal end, leave the process group that was joined inside; one that was joined before is its maker's to
    leave. After an error the other processes may be elsewhere, and leaving could wait for them: then none is left.

    A process that ends as a member is now and then killed by its group's own threads (SIGABRT), with all work done.
    """
    if not dist.is_available() or dist.is_initialized():
        yield
        return
    yield
    if dist.is_initialized():
        leave_processes()


def leave_processes() -> None:
    """Leave the default process group; all processes may call it at times of their own."""
    group = dist.group.WORLD
    assert group is not None
    # Held until the group is gone: a backend that is dropped by itself releases the interpreter's lock while it waits
    # for its threads. In PyTorch 2.6 the group holds the lock, which a thread of gloo needs to free the last tensor.
    backends = [group._get_backend(device) for device in group._device_types]
    del group
    dist.destroy_process_group()
    del backends


def mean_over_processes(value: Tensor) -> Tensor:
    """Elementwise; all processes must call it, with one shape."""
    if num_processes() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / num_processes()


def mean_of_all(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scalar mean of the elements that all processes hold, however many each has; all must call it.

    Args:
        values: any shape.
        mask: bool of the same shape, true at elements that count; all by default. Where none does, the mean is 0.
    """
    total, count = sum_of_all(values, mask)
    return total / count.clamp(min=1.0)


def sum_of_all(values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum and number of the elements that all processes hold, two scalars; all must call it. Arguments as for
    `mean_of_all`."""
    if mask is None:
        mask = torch.ones_like(values, dtype=torch.bool)
    both = torch.stack((values.where(mask, torch.zeros_like(values)).sum(), mask.sum().to(values.dtype)))
    if num_processes() > 1:
        dist.all_reduce(both)
    return both[0], both[1]
