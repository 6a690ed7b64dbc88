"""Random tensors for any device from a generator of any device: ``torch.rand`` and its kin.

A tensor is drawn where its generator is and moved to where it is wanted, so that a CPU generator draws the same numbers
for every device. Without a generator it is drawn where it is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

Device = torch.device | str


def rand(shape: Sequence[int], *, device: Device, generator: Generator | None) -> Tensor:
    """Uniform in ``[0, 1)``, fp32 of that shape."""
    return torch.rand(shape, device=source(device, generator), generator=generator).to(device)


def randint(high: int, shape: Sequence[int], *, device: Device, generator: Generator | None) -> Tensor:
    """Uniform in ``0 ... high - 1``, int64 of that shape."""
    return torch.randint(high, shape, device=source(device, generator), generator=generator).to(device)


def randperm(n: int, *, device: Device, generator: Generator | None) -> Tensor:
    """A random order of ``0 ... n - 1``, int64 ``[n]``."""
    return torch.randperm(n, device=source(device, generator), generator=generator).to(device)


def seed(*, device: Device, generator: Generator | None) -> Tensor:
    """A seed of counter-based draws, int64 scalar; without a generator from PyTorch's own on the CPU."""
    return torch.randint(2**63 - 1, (), device=source("cpu", generator), generator=generator).to(device)


def source(device: Device, generator: Generator | None) -> torch.device:
    """Where the numbers are drawn."""
    return torch.device(device) if generator is None else generator.device
