"""Philox4x32-10 in Triton: one launch for over two hundred in torch. Importing it imports triton."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit(do_not_specialize=["count"])
def philox_kernel(
    seed, candidate, row, step, stream, words, count,
    S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr, S3: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: (blocks,). `S*` is 1 where a counter has an entry for every number, 0 where one serves all."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    c0 = tl.load(candidate + i * S0, mask=inside, other=0).to(tl.uint32)
    c1 = tl.load(row + i * S1, mask=inside, other=0).to(tl.uint32)
    c2 = tl.load(step + i * S2, mask=inside, other=0).to(tl.uint32)
    c3 = tl.load(stream + i * S3, mask=inside, other=0).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(tl.load(seed), c0, c1, c2, c3)
    wide = tl.full((), 1, tl.int64) * count
    tl.store(words + i, w0.to(tl.int64), mask=inside)
    tl.store(words + wide + i, w1.to(tl.int64), mask=inside)
    tl.store(words + 2 * wide + i, w2.to(tl.int64), mask=inside)
    tl.store(words + 3 * wide + i, w3.to(tl.int64), mask=inside)


def triton_philox_4x32(seed: Tensor, counters: list[Tensor]) -> Tensor:
    """Words `[4, ...]` of `philox_4x32` for int64 tensors on one device; no host synchronisation."""
    shape = torch.broadcast_shapes(*(counter.shape for counter in counters))
    count = shape.numel()
    words = torch.empty((4, *shape), dtype=torch.int64, device=seed.device)
    if count > 0:
        flat = [c if c.numel() == 1 else c.expand(shape).contiguous() for c in counters]
        s0, s1, s2, s3 = (0 if c.numel() == 1 else 1 for c in flat)
        philox_kernel[(triton.cdiv(count, _BLOCK),)](
            seed, *flat, words, count, S0=s0, S1=s1, S2=s2, S3=s3, BLOCK=_BLOCK, num_warps=4
        )
    return words
