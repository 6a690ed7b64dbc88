"""`sample_rows`: draw a token for every row of logits, reading them once."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from discrete_distill.kernels.dispatch import Backend, check_backend, resolve_backend, scalar_tensor
from discrete_distill.kernels.reference_sampling import reference_sample_rows

_LOGIT_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
MAX_CANDIDATES_TRITON = 64
"""Candidates are unrolled in the kernel; more go to the torch reference."""


class SampledRows(NamedTuple):
    """What `sample_rows` returns, for `R` rows and `M` candidates.

    Examples:
        >>> logits, positions = torch.tensor([[0.0, 0.0, -torch.inf]]), torch.arange(1)
        >>> drawn = sample_rows(logits, seed=0, positions_R=positions, step=0, num_candidates=2, return_entropy=True)
        >>> drawn.log_probs, drawn.entropy
        (tensor([[-0.6931, -0.6931]]), tensor([0.6931]))
    """

    tokens: Tensor
    """`[R, M]` int64. -1 in inactive rows and where no finite logit is the largest (NaN, all -inf)."""
    log_probs: Tensor
    """`[R, M]` float32, nats: log-probability of the token under the distribution that was drawn from
    (tempered, tilted, without the mask token). 0 in inactive rows, NaN where there was nothing to draw from.
    Carries no gradient."""
    entropy: Tensor | None
    """`[R]` float32, nats: entropy of that distribution; 0 in inactive rows; None unless `return_entropy`."""


_SCHEMA = (
    "(Tensor logits, Tensor seed, Tensor positions, Tensor step, SymInt num_candidates, "
    "float inverse_temperature, SymInt mask_token_id, Tensor? tilt, Tensor? tilt_scale, Tensor? active, "
    "bool return_entropy, str backend) -> (Tensor, Tensor, Tensor)"
)


@torch.library.custom_op("discrete_distill::sample_rows", mutates_args=(), schema=_SCHEMA)
def _sample_rows_op(
    logits: Tensor,
    seed: Tensor,
    positions: Tensor,
    step: Tensor,
    num_candidates: int,
    inverse_temperature: float,
    mask_token_id: int,
    tilt: Tensor | None,
    tilt_scale: Tensor | None,
    active: Tensor | None,
    return_entropy: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (
        logits, seed, positions, step, num_candidates, inverse_temperature, mask_token_id, tilt, tilt_scale,
        active, return_entropy,
    )  # fmt: skip
    if resolve_backend(backend, logits.device) == "triton" and num_candidates <= MAX_CANDIDATES_TRITON:
        from discrete_distill.kernels.triton_sampling import triton_sample_rows

        return triton_sample_rows(*arguments)
    return reference_sample_rows(*arguments)


@_sample_rows_op.register_fake
def _(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    count, num_candidates, return_entropy = logits.shape[0], arguments[3], arguments[9]
    return (
        logits.new_empty((count, num_candidates), dtype=torch.int64),
        logits.new_empty((count, num_candidates), dtype=torch.float32),
        logits.new_empty((count if return_entropy else 0,), dtype=torch.float32),
    )


def _check_tilt(logits: Tensor, tilt: Tensor | None, tilt_scale: float | Tensor | None) -> Tensor | None:
    if (tilt is None) != (tilt_scale is None):
        raise ValueError("tilt and tilt_scale go together; pass both or neither")
    if tilt is None or tilt_scale is None:
        return None
    if tilt.shape != logits.shape:
        raise ValueError(
            f"tilt has shape {tuple(tilt.shape)} and the logits {tuple(logits.shape)}; pass one value a logit"
        )
    if tilt.dtype not in _LOGIT_DTYPES:
        raise TypeError(f"tilt is {tilt.dtype}; pass a floating tensor")
    if isinstance(tilt_scale, Tensor):
        if tilt_scale.numel() != 1:
            raise ValueError(f"tilt_scale has shape {tuple(tilt_scale.shape)}; pass a float or a tensor of one element")
        if tilt_scale.device != logits.device:
            raise ValueError(f"tilt_scale is on {tilt_scale.device}, the logits on {logits.device}; move it there once")
        return tilt_scale.detach().reshape(()).to(torch.float32)
    if not math.isfinite(tilt_scale):
        raise ValueError(f"tilt_scale is {tilt_scale}; pass a finite number")
    return torch.full((), tilt_scale, dtype=torch.float32, device=logits.device)


def _check_rows(logits: Tensor, positions: Tensor, active: Tensor | None) -> None:
    if not isinstance(logits, Tensor) or logits.dtype not in _LOGIT_DTYPES:
        raise TypeError(f"logits are {getattr(logits, 'dtype', type(logits).__name__)}; pass a floating tensor [R, V]")
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits have shape {tuple(logits.shape)}; pass [R, V] with V > 0 (flatten batch and length)")
    if not isinstance(positions, Tensor) or positions.dtype != torch.int64:
        raise TypeError(
            f"positions_R is {getattr(positions, 'dtype', type(positions).__name__)}; pass int64 global positions"
        )
    if positions.shape != logits.shape[:1]:
        raise ValueError(
            f"positions_R has shape {tuple(positions.shape)} for {logits.shape[0]} rows; pass one number a row"
        )
    if active is not None and active.shape != logits.shape[:1]:
        raise ValueError(f"active_R has shape {tuple(active.shape)} for {logits.shape[0]} rows; pass one flag a row")
    if active is not None and active.dtype != torch.bool:
        raise TypeError(f"active_R is {active.dtype}; pass torch.bool")
    for name, tensor in (("positions_R", positions), ("active_R", active)):
        if tensor is not None and tensor.device != logits.device:
            raise ValueError(f"{name} is on {tensor.device} and the logits on {logits.device}; move one of them")


def check_mask_token(mask_token_id: int | None, vocab_size: int) -> int:
    """The mask token as the ops take it: -1 for none. ValueError when it is outside the vocabulary."""
    if mask_token_id is None:
        return -1
    if not 0 <= mask_token_id < vocab_size:
        raise ValueError(f"mask_token_id is {mask_token_id} and the logits have {vocab_size} classes; or pass None")
    if vocab_size == 1:
        raise ValueError(
            "the only class is the mask token: nothing is left to draw; pass logits over the whole vocabulary"
        )
    return mask_token_id


def sample_rows(
    logits_RV: Tensor,
    *,
    seed: int | Tensor,
    positions_R: Tensor,
    step: int | Tensor,
    num_candidates: int = 1,
    temperature: float = 1.0,
    mask_token_id: int | None = None,
    tilt: Tensor | None = None,
    tilt_scale: float | Tensor | None = None,
    active_R: Tensor | None = None,
    return_entropy: bool = False,
    backend: Backend = "auto",
) -> SampledRows:
    r"""Draw `M` tokens for every row of logits, with log-probability and entropy, in one read of the logits.

    .. math:: p(v) \propto \exp(\ell_v / T + h\,\mathrm{clip}(g_v, -1, 1)), \quad v \ne m

    The token is drawn separately from the unmasking draw of its position: one categorical for
    both loses tail tokens in fp32, and low-precision Gumbel noise lowers the temperature (arXiv 2409.02908).
    The tilt is that of reward-guided ancestral sampling (arXiv 2509.25035). Two-level inverse CDF over 1024
    lanes: fp32 sums, fp64 tails. The number of lanes is part of the definition: a seed gives the same tokens
    on every backend (on a GPU up to rare flips from approximate exponentials) and under every chunking.

    Args:
        logits_RV: `[R, V]` raw logits, bf16, fp16 or fp32 (fp64 is read as fp32), any strides; never written
            to. -inf forbids a token.
        seed: 64-bit; an int, or an int64 tensor of one element on the device of the logits (for CUDA graphs).
        positions_R: `[R]` int64 *global* position numbers (modulo 2**32), the counters of the draws.
        step: number of the sampling step, int or tensor like `seed`.
        num_candidates: `M`, independent draws a row.
        temperature: `T > 0`.
        mask_token_id: `m`, a class that is never drawn; the last one is the fast case. None: there is none.
        tilt: `g`, `[R, V]` floating, for instance the gradient of a reward with respect to log p. Finite.
        tilt_scale: `h`, a float or a tensor of one element on the device of the logits.
        active_R: `[R]` bool; rows where it is False are not read and return -1, 0 and 0. None: all are
            active.
        return_entropy: whether the entropy is wanted.
        backend: "auto", "torch" or "triton"; the environment variable DISCRETE_DISTILL_BACKEND replaces
            "auto".

    Returns:
        `SampledRows(tokens [R, M] int64, log_probs [R, M] float32, entropy [R] float32 or None)`; nothing
        carries a gradient (`token_losses` gives differentiable log-probabilities).

    Raises:
        ValueError: shapes or devices that do not fit, a temperature that is not positive and finite, a mask
            token outside the vocabulary, `num_candidates < 1`, a tilt without its scale, or Triton chosen
            where it cannot run.
        TypeError: a dtype that does not fit.

    Examples:
        >>> logits = torch.zeros(3, 9)
        >>> drawn = sample_rows(logits, seed=0, positions_R=torch.arange(3), step=0, mask_token_id=8)
        >>> drawn.tokens.shape, drawn.log_probs[:, 0]  # log(1/8)
        (torch.Size([3, 1]), tensor([-2.0794, -2.0794, -2.0794]))
    """
    _check_rows(logits_RV, positions_R, active_R)
    check_backend(backend)
    if not (temperature > 0.0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}; pass a positive finite number (1e-3 is nearly argmax)")
    if num_candidates < 1:
        raise ValueError(f"num_candidates is {num_candidates}; pass at least 1")
    mask = check_mask_token(mask_token_id, logits_RV.shape[1])
    scale = _check_tilt(logits_RV, tilt, tilt_scale)
    tokens, log_probs, entropy = _sample_rows_op(
        logits_RV.detach(),
        scalar_tensor("seed", seed, logits_RV.device),
        positions_R,
        scalar_tensor("step", step, logits_RV.device),
        num_candidates,
        1.0 / temperature,
        mask,
        None if tilt is None else tilt.detach(),
        scale,
        active_R,
        return_entropy,
        backend,
    )
    return SampledRows(tokens, log_probs, entropy if return_entropy else None)
