"""What the kernels are compared with: eager torch as research code has it, and a first attempt in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # the dry run needs none
    triton = None


def eager_step(logits: Tensor, x_t: Tensor, mask: int, alpha_t: float, alpha_s: float, dtype: torch.dtype) -> Tensor:
    """Joint categorical of mask and tokens, by Gumbel noise over all of `[rows, V]`."""
    logits = logits.to(dtype, copy=True)
    logits[..., mask] = -1e6
    p = torch.log_softmax(logits, -1).exp()
    joint = p * ((alpha_s - alpha_t) / (1 - alpha_t))
    joint[..., mask] = (1 - alpha_s) / (1 - alpha_t)
    noise = 1e-10 - (torch.rand_like(joint) + 1e-10).log()
    return torch.where(x_t == mask, (joint / noise).argmax(-1), x_t)


def eager_losses(student: Tensor, teacher: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """The four token losses by autograd, in fp32 (fp64 for fp64 logits)."""
    if student.dtype != torch.float64:
        student, teacher = student.float(), teacher.float()
    p, q = torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)
    a, b = p.exp(), q.exp()
    log_prob = p.gather(-1, tokens[..., None])[..., 0]
    return log_prob, -(a * p).sum(-1), (b * (q - p)).sum(-1), (a * (p - q)).sum(-1)


if triton is not None:

    @triton.jit
    def _naive_gumbel_kernel(logits, tokens, last, stride, seed, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        best = tl.full((), float("-inf"), tl.float32)
        where = tl.full((), 0, tl.int32)
        for start in range(0, last, BLOCK):
            v = start + tl.arange(0, BLOCK)
            x = tl.load(logits + row * stride + v, mask=v < last, other=float("-inf")).to(tl.float32)
            y = x - tl.log(-tl.log(tl.rand(seed, row * stride + v) + 1e-20))
            top = tl.max(y, axis=0)
            where = tl.where(top > best, start + tl.argmax(y, axis=0), where)
            best = tl.maximum(top, best)
        tl.store(tokens + row, where.to(tl.int64))


def naive_gumbel(logits: Tensor, last: int) -> Tensor:
    """Gumbel-max with a uniform for every logit, reduced at every tile."""
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    _naive_gumbel_kernel[(len(logits),)](logits, tokens, last, logits.stride(0), 1, BLOCK=4096, num_warps=8)
    return tokens
