"""`sample_rows` in Triton: one program a row, one read of the logits. Importing this module imports triton.

The definition is in `reference_sampling`; the kernel differs from it in that the maximum of a lane is found
while its sum is taken. Logits stay in their own units until the maximum is subtracted, so that an offset of
1e4 costs no digits.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from discrete_distill.kernels.launch import SAMPLING, choose, device_major, supported, unit_stride
from discrete_distill.kernels.philox import STREAM_TOKEN
from discrete_distill.kernels.reference_sampling import LANES
from discrete_distill.kernels.triton_math import LN2, LOG2E, exp2_fast

_LOWEST = tl.constexpr(-1e30)
_WORD = tl.constexpr(2.0**-32)
_STREAM = tl.constexpr(STREAM_TOKEN)


@triton.jit
def _load(
    base,
    tilt_base,
    strength,
    offset,
    last,
    forbidden,
    HAS_TILT: tl.constexpr,
    FORBIDDEN: tl.constexpr,
    TAIL: tl.constexpr,
):
    """Logits as fp32, tilted; -inf where there is no token. `strength` is the tilt times the temperature."""
    if TAIL:
        x = tl.load(base + offset, mask=offset < last, other=float("-inf")).to(tl.float32)
    else:
        x = tl.load(base + offset).to(tl.float32)
    if HAS_TILT:
        if TAIL:
            g = tl.load(tilt_base + offset, mask=offset < last, other=0.0).to(tl.float32)
        else:
            g = tl.load(tilt_base + offset).to(tl.float32)
        x += strength * tl.minimum(tl.maximum(g, -1.0), 1.0)
    if FORBIDDEN:
        x = tl.where(offset == forbidden, float("-inf"), x)
    return x


@triton.jit
def _update(x, top, mass, moment, scale, ENTROPY: tl.constexpr):
    """Fold a tile [U, Q] into the lanes' maximum, sum of exponentials and sum of them times distance."""
    new_top = tl.maximum(tl.max(x, axis=0), top)
    distance = x - new_top[None, :]
    e = exp2_fast(distance * scale)
    shift = top - new_top
    decay = exp2_fast(shift * scale)
    if ENTROPY:
        finite = tl.maximum(distance, _LOWEST)  # 0 * -inf is NaN
        moment = (moment + mass * shift) * decay + tl.sum(e * finite, axis=0)
    mass = mass * decay + tl.sum(e, axis=0)
    return new_top, mass, moment


@triton.jit(do_not_specialize=["last", "forbidden"])
def sample_rows_kernel(
    logits, rows, active, seed, step, tilt, tilt_scale, tokens, log_probs, entropy,
    logits_stride, tilt_stride, last, forbidden, inverse_temperature,
    Q: tl.constexpr, U: tl.constexpr, DEPTH: tl.constexpr, M: tl.constexpr,
    HAS_ACTIVE: tl.constexpr, HAS_TILT: tl.constexpr, FORBIDDEN: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    """Grid: (R,). `last` classes are read; `forbidden` is one among them when FORBIDDEN."""
    row = tl.program_id(0).to(tl.int64)
    wanted = True
    if HAS_ACTIVE:
        wanted = tl.load(active + row) != 0
    if wanted:
        base = logits + row * logits_stride
        tilt_base = tilt + row * tilt_stride
        scale = inverse_temperature * LOG2E
        strength = 0.0
        if HAS_TILT:
            strength = tl.load(tilt_scale) / inverse_temperature
        lane = tl.arange(0, Q)
        tile = tl.arange(0, U)[:, None] * Q + lane[None, :]
        top = tl.full((Q,), _LOWEST, tl.float32)
        mass = tl.zeros((Q,), tl.float32)
        moment = tl.zeros((Q,), tl.float32)
        full = (last // (U * Q)) * (U * Q)
        for start in range(0, full, U * Q):
            x = _load(base, tilt_base, strength, start + tile, last, forbidden, HAS_TILT, FORBIDDEN, False)
            top, mass, moment = _update(x, top, mass, moment, scale, ENTROPY)
        x = _load(base, tilt_base, strength, full + tile, last, forbidden, HAS_TILT, FORBIDDEN, True)
        top, mass, moment = _update(x, top, mass, moment, scale, ENTROPY)

        highest = tl.max(top, axis=0)
        decay = exp2_fast((top - highest) * scale)
        masses = (mass * decay).to(tl.float64)
        cumulative = tl.cumsum(masses, axis=0)
        total = tl.sum(masses, axis=0)
        log_total = tl.log2(total.to(tl.float32)) * LN2
        valid = (total > 0.0) & (total < float("inf"))
        key = tl.load(seed)
        at = tl.load(step).to(tl.uint32)
        number = tl.load(rows + row).to(tl.uint32)
        place = tl.arange(0, DEPTH)
        for k in tl.static_range(M):
            word_0, word_1, _, _ = tl.philox(key, k, number, at, _STREAM)
            goal = (word_0.to(tl.float64) + 0.5) * _WORD * total
            j = tl.minimum(tl.sum((cumulative <= goal).to(tl.int32), axis=0), Q - 1)
            member = j + place * Q
            y = _load(base, tilt_base, strength, member, last, forbidden, HAS_TILT, FORBIDDEN, True)
            weights = exp2_fast((y - highest) * scale).to(tl.float64)
            inner = tl.cumsum(weights, axis=0)
            inner_goal = (word_1.to(tl.float64) + 0.5) * _WORD * tl.sum(weights, axis=0)
            i = tl.minimum(tl.sum((inner <= inner_goal).to(tl.int32), axis=0), DEPTH - 1)
            chosen = tl.sum(tl.where(place == i, y, 0.0), axis=0)
            log_prob = (chosen - highest) * inverse_temperature - log_total
            tl.store(tokens + row * M + k, tl.where(valid, j + i * Q, -1).to(tl.int64))
            tl.store(log_probs + row * M + k, tl.where(valid, log_prob, float("nan")))
        if ENTROPY:
            moments = tl.sum((moment + mass * (top - highest)) * decay, axis=0)
            tl.store(entropy + row, log_total - moments * inverse_temperature / total.to(tl.float32))
    else:
        for k in tl.static_range(M):
            tl.store(tokens + row * M + k, tl.full((), -1, tl.int64))
            tl.store(log_probs + row * M + k, 0.0)
        if ENTROPY:
            tl.store(entropy + row, 0.0)


def triton_sample_rows(
    logits: Tensor,
    seed: Tensor,
    rows: Tensor,
    step: Tensor,
    num_candidates: int,
    inverse_temperature: float,
    mask_token_id: int,
    tilt: Tensor | None,
    tilt_scale: Tensor | None,
    active: Tensor | None,
    return_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernel; arguments as the registered op has them. No host synchronisation, static shapes."""
    count, vocab_size = logits.shape
    tokens = torch.empty((count, num_candidates), dtype=torch.int64, device=logits.device)
    log_probs = torch.empty((count, num_candidates), dtype=torch.float32, device=logits.device)
    entropy = torch.empty((count if return_entropy else 0,), dtype=torch.float32, device=logits.device)
    if count == 0:
        return tokens, log_probs, entropy
    logits = unit_stride(supported(logits))
    tilt_values = logits if tilt is None else unit_stride(supported(tilt))
    last = vocab_size - 1 if mask_token_id == vocab_size - 1 else vocab_size
    line = choose(SAMPLING, logits.element_size(), device_major(logits))
    sample_rows_kernel[(count,)](
        logits,
        rows.contiguous(),
        rows if active is None else active.contiguous().view(torch.uint8),
        seed,
        step,
        tilt_values,
        seed if tilt_scale is None else tilt_scale,
        tokens,
        log_probs,
        entropy,
        logits.stride(0),
        tilt_values.stride(0),
        last,
        mask_token_id,
        inverse_temperature,
        Q=LANES,
        U=line.unroll,
        DEPTH=triton.next_power_of_2(triton.cdiv(last, LANES)),
        M=num_candidates,
        HAS_ACTIVE=active is not None,
        HAS_TILT=tilt is not None,
        FORBIDDEN=0 <= mask_token_id < last,
        ENTROPY=return_entropy,
        num_warps=line.num_warps,
        enable_fp_fusion=True,
    )
    return tokens, log_probs, entropy
