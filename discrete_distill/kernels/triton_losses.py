"""`token_losses` in Triton: forward one read, backward one read and one write. Importing this module imports
triton.

The formulas are in `reference_losses`. Forward: one program a row, a tile has `G * W` logits, `G` is the number of
threads, and a thread keeps one set of running sums of the `W` logits that it loads (in registers, with nothing
exchanged before the loop ends); the loop is unrolled `U` times. Where rows start at multiples of 16 bytes (`ALIGNED`),
the tile is `[G, W]` and the logits of a thread are one 16-byte load; elsewhere it is `[W, G]`, so that a thread still
sums what it loaded itself, one element at a time. Sums are of logits less the group's maximum so far, and are moved
when that moves.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from discrete_distill.kernels.launch import (
    LOSSES_BACKWARD,
    LOSSES_FORWARD,
    aligned_rows,
    choose,
    device_major,
    unit_stride,
)
from discrete_distill.kernels.padding import empty_rows
from discrete_distill.kernels.reference_losses import LOGIT_FLOOR, STATISTICS
from discrete_distill.kernels.reference_sampling import LANES
from discrete_distill.kernels.triton_math import LN2, LOG2E, exp2_fast

_FLOOR = tl.constexpr(LOGIT_FLOOR)


@triton.jit
def _load(base, offset, last, forbidden, FORBIDDEN: tl.constexpr, TAIL: tl.constexpr):
    """Logits as fp32, not below the floor; the floor where there is no class."""
    if TAIL:
        x = tl.load(base + offset, mask=offset < last, other=_FLOOR).to(tl.float32)
    else:
        x = tl.load(base + offset).to(tl.float32)
    if FORBIDDEN:
        x = tl.where(offset == forbidden, _FLOOR, x)
    # A plain maximum would turn NaN into the floor and hide it.
    return tl.maximum(x, _FLOOR, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _rescale(x, top, OWN: tl.constexpr):
    """New maximum of the groups, distances to it, exponentials, its move and the factor for old sums; `OWN` is the
    axis of what a thread owns."""
    new_top = tl.maximum(tl.max(x, axis=OWN), top)
    distance = x - tl.expand_dims(new_top, OWN)
    shift = top - new_top
    return new_top, distance, exp2_fast(distance * LOG2E), shift, exp2_fast(shift * LOG2E)


@triton.jit
def _update(
    student, teacher, start, last, forbidden, top_s, mass_s, own, top_t, mass_t, cross_s, cross_t, tile,
    OWN: tl.constexpr, HAS_TEACHER: tl.constexpr, FORBIDDEN: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Fold one tile into the groups. own: sum e^a a; cross_s: sum e^a (a - b); cross_t: sum e^b (a - b)."""
    offset = start + tile
    x = _load(student, offset, last, forbidden, FORBIDDEN, TAIL)
    top_s, a, e, shift_s, decay_s = _rescale(x, top_s, OWN)
    if TAIL:
        e = tl.where(offset < last, e, 0.0)
    own = (own + mass_s * shift_s) * decay_s + tl.sum(e * a, axis=OWN)
    if HAS_TEACHER:
        x_t = _load(teacher, offset, last, forbidden, FORBIDDEN, TAIL)
        top_t, b, f, shift_t, decay_t = _rescale(x_t, top_t, OWN)
        if TAIL:
            f = tl.where(offset < last, f, 0.0)
        difference = a - b
        moved = shift_s - shift_t
        cross_s = (cross_s + mass_s * moved) * decay_s + tl.sum(e * difference, axis=OWN)
        cross_t = (cross_t + mass_t * moved) * decay_t + tl.sum(f * difference, axis=OWN)
        mass_t = mass_t * decay_t + tl.sum(f, axis=OWN)
    mass_s = mass_s * decay_s + tl.sum(e, axis=OWN)
    return top_s, mass_s, own, top_t, mass_t, cross_s, cross_t


@triton.jit(do_not_specialize=["count", "last", "classes", "mask_token", "forbidden"])
def token_losses_kernel(
    student, teacher, tokens, active, statistics, count, student_stride, teacher_stride,
    last, classes, mask_token, forbidden,
    U: tl.constexpr, G: tl.constexpr, W: tl.constexpr, ALIGNED: tl.constexpr,
    HAS_ACTIVE: tl.constexpr, HAS_TEACHER: tl.constexpr, FORBIDDEN: tl.constexpr,
):  # fmt: skip
    """Grid: (R,). Writes the eight rows of statistics of `reference_losses`."""
    row = tl.program_id(0).to(tl.int64)
    out = statistics + row
    wide = tl.full((), 1, tl.int64) * count
    wanted = True
    if HAS_ACTIVE:
        wanted = tl.load(active + row) != 0
    if wanted:
        s = student + row * student_stride
        t = teacher + row * teacher_stride
        # Without the axis U: compilers differ in how they spread three axes over the threads of a warp.
        OWN: tl.constexpr = 1 if ALIGNED else 0
        if ALIGNED:
            tile = tl.arange(0, G)[:, None] * W + tl.arange(0, W)[None, :]
        else:
            tile = tl.arange(0, W)[:, None] * G + tl.arange(0, G)[None, :]
        top_s = tl.full((G,), _FLOOR, tl.float32)
        top_t = top_s
        mass_s = tl.zeros((G,), tl.float32)
        own = mass_s
        mass_t = mass_s
        cross_s = mass_s
        cross_t = mass_s
        full = (last // (U * G * W)) * (U * G * W)
        for start in range(0, full, U * G * W):
            for u in tl.static_range(U):
                top_s, mass_s, own, top_t, mass_t, cross_s, cross_t = _update(
                    s, t, start + u * G * W, last, forbidden,
                    top_s, mass_s, own, top_t, mass_t, cross_s, cross_t, tile, OWN, HAS_TEACHER, FORBIDDEN, False,
                )  # fmt: skip
        for u in tl.static_range(U):
            top_s, mass_s, own, top_t, mass_t, cross_s, cross_t = _update(
                s, t, full + u * G * W, last, forbidden,
                top_s, mass_s, own, top_t, mass_t, cross_s, cross_t, tile, OWN, HAS_TEACHER, FORBIDDEN, True,
            )  # fmt: skip
        highest_s = tl.max(top_s, axis=0)
        shift_s = top_s - highest_s
        decay_s = exp2_fast(shift_s * LOG2E)
        total_s = tl.sum(mass_s * decay_s, axis=0)
        log_s = tl.log2(total_s) * LN2
        y = tl.load(tokens + row)
        inside = (y >= 0) & (y < classes)
        x = tl.load(s + y, mask=inside, other=0.0).to(tl.float32)
        x = tl.where((x < _FLOOR) | (y == mask_token), _FLOOR, x)
        x = tl.where(inside, x, float("nan"))
        tl.store(out, (x - highest_s) - log_s)
        tl.store(out + wide, log_s - tl.sum((own + mass_s * shift_s) * decay_s, axis=0) / total_s)
        tl.store(out + 4 * wide, highest_s)
        tl.store(out + 5 * wide, log_s)
        if HAS_TEACHER:
            highest_t = tl.max(top_t, axis=0)
            shift_t = top_t - highest_t
            decay_t = exp2_fast(shift_t * LOG2E)
            total_t = tl.sum(mass_t * decay_t, axis=0)
            log_t = tl.log2(total_t) * LN2
            moved = shift_s - shift_t
            forward = (log_s - log_t) - tl.sum((cross_t + mass_t * moved) * decay_t, axis=0) / total_t
            reverse = tl.sum((cross_s + mass_s * moved) * decay_s, axis=0) / total_s - (log_s - log_t)
            tl.store(out + 2 * wide, forward)
            tl.store(out + 3 * wide, reverse)
            tl.store(out + 6 * wide, highest_t)
            tl.store(out + 7 * wide, log_t)
        else:
            for k in tl.static_range(4):
                tl.store(out + (2 + k + (k // 2) * 2) * wide, 0.0)
    else:
        for k in tl.static_range(8):
            tl.store(out + k * wide, 0.0)


@triton.jit
def _gradient(
    student, teacher, offset, last, forbidden, slope, constant, g_forward, g_reverse,
    top_s, log_s, top_t, log_t, HAS_TEACHER: tl.constexpr, FORBIDDEN: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    x = _load(student, offset, last, forbidden, FORBIDDEN, TAIL)
    a = (x - top_s) - log_s
    factor = slope * a + constant
    if HAS_TEACHER:
        b = (_load(teacher, offset, last, forbidden, FORBIDDEN, TAIL) - top_t) - log_t
        factor -= g_reverse * b
    d = exp2_fast(a * LOG2E) * factor
    if HAS_TEACHER:
        d -= g_forward * exp2_fast(b * LOG2E)
    return tl.where(x <= _FLOOR, 0.0, d)


@triton.jit
def _at_token(student, offset, y, g_log_prob, last, forbidden, FORBIDDEN: tl.constexpr):
    """The gradient of log p_y at y itself; nothing for a token below the floor, whose logit is a constant."""
    x = tl.load(student + y, mask=(y >= 0) & (y < last), other=_FLOOR).to(tl.float32)
    if FORBIDDEN:
        x = tl.where(y == forbidden, _FLOOR, x)
    gain = tl.where(x > _FLOOR, g_log_prob, 0.0)
    return tl.where(offset == y, gain, 0.0)


@triton.jit(do_not_specialize=["count", "width", "last", "forbidden", "blocks"])
def token_losses_backward_kernel(
    student, teacher, tokens, active, statistics, gradients, result, count, student_stride, teacher_stride,
    result_stride, width, last, forbidden, blocks,
    BLOCK: tl.constexpr, HAS_ACTIVE: tl.constexpr, HAS_TEACHER: tl.constexpr, FORBIDDEN: tl.constexpr,
):  # fmt: skip
    """Grid: (R * blocks,). Writes `width` columns; zeros from `last` on and in inactive rows."""
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    begin = (program % blocks) * BLOCK
    offset = begin + tl.arange(0, BLOCK)
    out = result + row * result_stride + offset
    wanted = begin < last
    if HAS_ACTIVE:
        wanted = wanted & (tl.load(active + row) != 0)
    if wanted:
        wide = tl.full((), 1, tl.int64) * count
        saved = statistics + row
        entropy = tl.load(saved + wide)
        reverse = tl.load(saved + 3 * wide)
        top_s = tl.load(saved + 4 * wide)
        log_s = tl.load(saved + 5 * wide)
        top_t = tl.load(saved + 6 * wide)
        log_t = tl.load(saved + 7 * wide)
        g_log_prob = tl.load(gradients + row)
        g_entropy = tl.load(gradients + wide + row)
        g_forward = tl.load(gradients + 2 * wide + row)
        g_reverse = tl.load(gradients + 3 * wide + row)
        slope = g_reverse - g_entropy
        constant = g_forward - g_log_prob - g_entropy * entropy - g_reverse * reverse
        y = tl.load(tokens + row)
        s = student + row * student_stride
        t = teacher + row * teacher_stride
        if begin + BLOCK <= last:
            d = _gradient(
                s, t, offset, last, forbidden, slope, constant, g_forward, g_reverse,
                top_s, log_s, top_t, log_t, HAS_TEACHER, FORBIDDEN, False,
            )  # fmt: skip
            if (y >= begin) & (
                y < begin + BLOCK
            ):  # one program in a row: the others skip the comparison of every column
                d += _at_token(s, offset, y, g_log_prob, last, forbidden, FORBIDDEN)
            tl.store(out, d.to(result.dtype.element_ty))
        else:
            d = _gradient(
                s, t, offset, last, forbidden, slope, constant, g_forward, g_reverse,
                top_s, log_s, top_t, log_t, HAS_TEACHER, FORBIDDEN, True,
            )  # fmt: skip
            d += _at_token(s, offset, y, g_log_prob, last, forbidden, FORBIDDEN)
            tl.store(out, tl.where(offset < last, d, 0.0).to(result.dtype.element_ty), mask=offset < width)
    else:
        tl.store(out, tl.zeros((BLOCK,), tl.float32).to(result.dtype.element_ty), mask=offset < width)


def _limits(mask_token_id: int, num_classes: int) -> tuple[int, bool]:
    """Classes to read, and whether one among them is forbidden."""
    last = num_classes - 1 if mask_token_id == num_classes - 1 else num_classes
    return last, 0 <= mask_token_id < last


def _flags(active: Tensor | None, other: Tensor) -> Tensor:
    return other if active is None else active.contiguous().view(torch.uint8)


def triton_token_losses(
    student: Tensor,
    teacher: Tensor | None,
    tokens: Tensor,
    active: Tensor | None,
    mask_token_id: int,
    num_classes: int,
) -> Tensor:
    """Statistics `[8, R]` in fp32; arguments as the registered op has them. No host synchronisation."""
    count = student.shape[0]
    statistics = torch.empty((STATISTICS, count), dtype=torch.float32, device=student.device)
    if count == 0:
        return statistics
    student, tokens = unit_stride(student), tokens.contiguous()
    other = student if teacher is None else unit_stride(teacher)
    last, forbidden = _limits(mask_token_id, num_classes)
    itemsize = max(student.element_size(), other.element_size())
    line = choose(LOSSES_FORWARD, itemsize, device_major(student))
    token_losses_kernel[(count,)](
        student, other, tokens, _flags(active, tokens), statistics, count, student.stride(0), other.stride(0),
        last, num_classes, mask_token_id, mask_token_id,
        U=line.unroll, G=32 * line.num_warps, W=line.width, ALIGNED=aligned_rows(student) and aligned_rows(other),
        HAS_ACTIVE=active is not None, HAS_TEACHER=teacher is not None, FORBIDDEN=forbidden,
        num_warps=line.num_warps,
        enable_fp_fusion=True,
    )  # fmt: skip
    return statistics


def triton_token_losses_backward(
    gradients: Tensor,
    student: Tensor,
    teacher: Tensor | None,
    tokens: Tensor,
    active: Tensor | None,
    statistics: Tensor,
    mask_token_id: int,
    num_classes: int,
) -> Tensor:
    """Gradient `[R, V]` in the student's dtype; arguments as the op has them. No host synchronisation."""
    count, width = student.shape
    result = empty_rows(student, width)
    if count == 0:
        return result
    student, tokens = unit_stride(student), tokens.contiguous()
    other = student if teacher is None else unit_stride(teacher)
    last, forbidden = _limits(mask_token_id, num_classes)
    itemsize = max(student.element_size(), other.element_size())
    line = choose(LOSSES_BACKWARD, itemsize, device_major(student))
    block = line.unroll * LANES
    blocks = triton.cdiv(width, block)
    token_losses_backward_kernel[(count * blocks,)](
        student, other, tokens, _flags(active, tokens), statistics.contiguous(), gradients.contiguous(),
        result, count, student.stride(0), other.stride(0), result.stride(0), width, last, mask_token_id, blocks,
        BLOCK=block, HAS_ACTIVE=active is not None, HAS_TEACHER=teacher is not None, FORBIDDEN=forbidden,
        num_warps=line.num_warps,
        enable_fp_fusion=True,
    )  # fmt: skip
    return result
