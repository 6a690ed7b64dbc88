"""An independent oracle: lanewise Gumbel-max in Triton. It shares only Philox with the sampler."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _score(base, offset, last, word):
    """logit - log(-log u), with u strictly inside (0, 1); -inf where there is no token."""
    u = ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    x = tl.load(base + offset, mask=offset < last, other=float("-inf")).to(tl.float32)
    return x - tl.log(-tl.log(u))


@triton.jit
def _better(best, where, score, offset):
    return tl.where(score > best, score, best), tl.where(score > best, offset, where)


@triton.jit
def gumbel_kernel(logits, tokens, seed, step, last, stride, Q: tl.constexpr):
    """Grid: (R,). The four words of a counter serve four tokens that are Q apart."""
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * stride
    key = tl.load(seed)
    lane = tl.arange(0, Q)
    best = tl.full((Q,), float("-inf"), tl.float32)
    where = tl.zeros((Q,), tl.int32)
    for start in range(0, last, 4 * Q):
        counter = (start // 4 + lane).to(tl.uint32)
        zero = counter * 0
        r0, r1, r2, r3 = tl.philox(key, counter, zero + row.to(tl.uint32), zero + step, zero + 99)
        offset = start + lane
        best, where = _better(best, where, _score(base, offset, last, r0), offset)
        best, where = _better(best, where, _score(base, offset + Q, last, r1), offset + Q)
        best, where = _better(best, where, _score(base, offset + 2 * Q, last, r2), offset + 2 * Q)
        best, where = _better(best, where, _score(base, offset + 3 * Q, last, r3), offset + 3 * Q)
    top = tl.max(best, axis=0)
    tl.store(tokens + row, tl.min(tl.where(best == top, where, 2147483647), axis=0).to(tl.int64))
