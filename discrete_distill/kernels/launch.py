"""How the Triton kernels are launched: a static table, so that runs repeat and nothing is tuned while
training.

This module imports no triton. Keys are the bytes of a logit and the major compute capability. A tile is
`unroll` times 1024 logits, and 1024 is 32 threads x warps x width with a width of 16 bytes: every thread
loads 16 bytes at a time and reduces only what it loaded itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CAPABILITIES = ((8, 0), (9, 0), (10, 0))
"""What the kernels are compiled for in the tests; others in between run the entry of their major number."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One line of the table."""

    unroll: int
    """16-byte loads in flight in one trip of a thread's loop; in the backward pass, in a program."""
    num_warps: int
    width: int
    """Logits in 16 bytes."""
    max_registers: int
    """Registers a thread may take, with rows that start anywhere as well as at multiples of 16 bytes; the tests compile
    every kernel ahead of time and compare."""


def _by_capability(launch: Launch) -> dict[int, Launch]:
    return {major: launch for major, _ in CAPABILITIES}


SAMPLING: dict[int, dict[int, Launch]] = {
    # Unrolled by 4, some compilers for 8.0 and 10.0 put 8 bytes of this kernel on the stack.
    2: {
        **_by_capability(Launch(unroll=2, num_warps=4, width=8, max_registers=168)),
        9: Launch(unroll=4, num_warps=4, width=8, max_registers=168),
    },
    4: _by_capability(Launch(unroll=2, num_warps=8, width=4, max_registers=104)),
}
LOSSES_FORWARD: dict[int, dict[int, Launch]] = {
    2: _by_capability(Launch(unroll=2, num_warps=4, width=8, max_registers=128)),
    4: _by_capability(Launch(unroll=2, num_warps=8, width=4, max_registers=64)),
}
LOSSES_BACKWARD: dict[int, dict[int, Launch]] = {
    # 96 but for 10.0, where rows that start anywhere and a forbidden class take 113.
    2: _by_capability(Launch(unroll=2, num_warps=4, width=8, max_registers=120)),
    4: _by_capability(Launch(unroll=2, num_warps=8, width=4, max_registers=64)),
}


def choose(table: dict[int, dict[int, Launch]], itemsize: int, major: int) -> Launch:
    """The line for logits of `itemsize` bytes and a major compute capability (the nearest below)."""
    lines = table[2 if itemsize <= 2 else 4]
    return lines[max((known for known in lines if known <= major), default=min(lines))]


def device_major(tensor: Tensor) -> int:
    """Major compute capability of the tensor's device; Hopper's when interpreted on a CPU."""
    return torch.cuda.get_device_capability(tensor.device)[0] if tensor.device.type == "cuda" else 9


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor itself when its rows are contiguous in memory, a copy otherwise."""
    return tensor if tensor.shape[1] == 1 or tensor.stride(1) == 1 else tensor.contiguous()


def aligned_rows(tensor: Tensor) -> bool:
    """Whether Triton can infer that every row starts at a multiple of 16 bytes: it looks at the pointer and at the
    stride in elements."""
    return tensor.stride(0) % 16 == 0 and tensor.data_ptr() % 16 == 0


def supported(tensor: Tensor) -> Tensor:
    """float64 becomes float32; everything else is read by the kernels as it is."""
    return tensor.float() if tensor.dtype == torch.float64 else tensor
