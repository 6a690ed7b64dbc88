"""The sampler in torch: its definition, the CPU path, and what the Triton kernel is tested against.

The definition. Token `v` belongs to lane `v mod 1024`. With `e_v = exp((y_v - max y) / T)` in fp32, lane
masses are summed in fp32; from there on everything is fp64. A first uniform picks the lane by inverse CDF
over the lane masses, a second one picks the token among those of the lane. Both come from one Philox counter
`(candidate, global row, step, STREAM_TOKEN)`. Two levels keep the long sum inside a lane, where a GPU needs
no exchange between threads, and fp64 at both levels leaves no bias in the tail (what 32-bit uniforms resolve
is 2**-32 of the lane masses).
"""

from __future__ import annotations

import torch
from torch import Tensor

from discrete_distill.kernels.philox import STREAM_TOKEN, to_unit_interval, torch_philox_4x32

LANES = 1024
"""Part of the definition: another number of lanes draws other tokens from the same seed."""

_CHUNK_ELEMENTS_CPU = 2**19  # 2 MB of fp32: what a core's cache holds
_CHUNK_ELEMENTS_ACCELERATOR = 2**24
_ROWS_PER_PHILOX_CALL = 4096  # counters are many small operations on few numbers: fewer and larger calls


def rows_per_chunk(device: torch.device, vocab_size: int) -> int:
    """How many rows of logits the reference holds in fp32 at once."""
    elements = _CHUNK_ELEMENTS_CPU if device.type == "cpu" else _CHUNK_ELEMENTS_ACCELERATOR
    return max(1, elements // max(1, vocab_size))


def _own_fp32(tensor: Tensor, rows: slice | Tensor, last: int) -> Tensor:
    """Leading columns of some rows as fp32 of our own (indexing by a tensor has copied already)."""
    return tensor[rows, :last].to(torch.float32, copy=isinstance(rows, slice))


def _tempered(
    logits: Tensor,
    rows: slice | Tensor,
    last: int,
    inverse_temperature: float,
    forbidden: int | None,
    tilt: Tensor | None,
    tilt_scale: Tensor | None,
) -> Tensor:
    """fp32 logits of some rows, tilted, masked and divided by the temperature; not to be written to."""
    if tilt is not None and tilt_scale is not None:
        strength = (tilt_scale / inverse_temperature).to(torch.float32)
        values = _own_fp32(tilt, rows, last).clamp_(-1.0, 1.0).mul_(strength).add_(logits[rows, :last])
    elif forbidden is None and inverse_temperature == 1.0:
        return logits[rows, :last].to(torch.float32)
    else:
        values = _own_fp32(logits, rows, last)
    if forbidden is not None:
        values[:, forbidden] = float("-inf")
    if inverse_temperature != 1.0:
        # The maximum goes first: scaling logits of 1e4 would round away what softmax then subtracts.
        values.sub_(values.amax(-1, keepdim=True)).mul_(inverse_temperature)
    return values


def lane_masses(weights: Tensor) -> Tensor:
    """Sum weights `[R, V]` over the tokens of a lane: `[R, min(V, 1024)]`."""
    rows, vocab_size = weights.shape
    full = vocab_size // LANES * LANES
    if full == 0:
        return weights
    masses = weights[:, :full].view(rows, -1, LANES).sum(1)
    if full < vocab_size:
        masses[:, : vocab_size - full] += weights[:, full:]
    return masses


def inverse_cdf(masses: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest index whose cumulative mass exceeds `uniform * total`, in fp64.

    Args:
        masses: `[..., N]`, not negative, not normalised.
        uniforms: `[..., M]`, float64 inside (0, 1).

    Returns:
        int64 indices `[..., M]` and the fp64 total `[..., 1]`.
    """
    cumulative = masses.cumsum(-1, dtype=torch.float64)
    total = cumulative[..., -1:].contiguous()
    index = torch.searchsorted(cumulative, (uniforms * total).contiguous(), right=True)
    return index.clamp_(max=masses.shape[-1] - 1), total


def _draw(
    weights: Tensor, lane_uniforms: Tensor, token_uniforms: Tensor, return_entropy: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens `[R, M]`, their log-probabilities and the entropy `[R]` from weights `[R, V]`."""
    rows, vocab_size = weights.shape
    lane, total = inverse_cdf(lane_masses(weights), lane_uniforms)
    depth = -(-vocab_size // LANES)
    members = lane.unsqueeze(-1) + torch.arange(depth, device=weights.device) * LANES
    inside = members < vocab_size
    positions = members.clamp(max=vocab_size - 1).view(rows, -1)
    member_weights = weights.gather(1, positions).view_as(members).to(torch.float64).mul_(inside)
    place, _ = inverse_cdf(member_weights, token_uniforms.unsqueeze(-1))
    log_probs = (member_weights.gather(-1, place).squeeze(-1) / total).log().to(torch.float32)
    tokens = lane + place.squeeze(-1) * LANES
    valid = (total > 0) & (total < float("inf"))
    entropy = _entropy(weights, total) if return_entropy else None
    return torch.where(valid, tokens, -1), torch.where(valid, log_probs, float("nan")), entropy


def _entropy(weights: Tensor, total: Tensor) -> Tensor:
    """Entropy in nats of `weights / total`: `log total - (sum w log w) / total`, with `0 log 0 = 0`."""
    total = total.squeeze(-1)
    terms = weights.log().clamp_(min=-200.0).mul_(weights)
    return (total.log() - terms.sum(-1, dtype=torch.float64) / total).to(torch.float32)


def reference_sample_rows(
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
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`sample_rows` in torch; arguments as the registered op has them (`mask_token_id` -1: none).

    Memory beside the outputs: at most two chunks of rows in fp32. No host synchronisation on an accelerator.
    """
    count, vocab_size = logits.shape
    device = logits.device
    tokens = torch.full((count, num_candidates), -1, dtype=torch.int64, device=device)
    log_probs = torch.zeros((count, num_candidates), dtype=torch.float32, device=device)
    entropy = torch.zeros((count if return_entropy else 0,), dtype=torch.float32, device=device)
    last = vocab_size - 1 if mask_token_id == vocab_size - 1 else vocab_size
    forbidden = mask_token_id if 0 <= mask_token_id < last else None

    chosen: Tensor | None = None
    if active is not None and device.type == "cpu":
        chosen = active.nonzero().squeeze(1)  # on a CPU this waits for nothing
        rows, count = rows[chosen], len(chosen)
    key, at = (int(seed), int(step)) if device.type == "cpu" else (seed, step)
    candidates = torch.arange(num_candidates, device=device)
    chunk = chunk_rows or rows_per_chunk(device, vocab_size)
    block = chunk * max(1, _ROWS_PER_PHILOX_CALL // chunk)
    for start in range(0, count, chunk):
        if start % block == 0:
            numbers = rows[start : start + block, None]
            lane_words, token_words, _, _ = torch_philox_4x32(key, candidates, numbers, at, STREAM_TOKEN)
        here = slice(start, min(start + chunk, count))
        which = here if chosen is None else chosen[here]
        words = slice(start % block, start % block + here.stop - start)
        uniforms = to_unit_interval(lane_words[words]), to_unit_interval(token_words[words])
        # Only small tensors outlive this line, so that the next chunk does not find the last one still there.
        tokens[which], log_probs[which], entropies = _draw(
            torch.softmax(_tempered(logits, which, last, inverse_temperature, forbidden, tilt, tilt_scale), -1),
            *uniforms,
            return_entropy,
        )
        if entropies is not None:
            entropy[which] = entropies
    if active is not None and chosen is None:
        tokens = torch.where(active[:, None], tokens, -1)
        log_probs = torch.where(active[:, None], log_probs, 0.0)
        entropy = torch.where(active, entropy, 0.0) if return_entropy else entropy
    return tokens, log_probs, entropy
