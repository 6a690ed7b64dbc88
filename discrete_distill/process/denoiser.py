"""The one protocol of the library: what a denoiser is, and how to ask it for the rows that are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


class Denoiser(Protocol):
    """Any callable from noisy tokens to raw logits.

    ``denoiser(x_t, t, **cond) -> logits`` with ``x_t`` int64 ``[B, L]``, ``t`` fp32 ``[B]`` in ``[0, 1]`` and
    logits ``[B, L, V]``. The logits are raw: that the mask is never predicted and that visible tokens stay is
    the process's business (`MaskedDiffusion.log_probs`). Nobody writes into them.

    A denoiser with a true attribute ``accepts_step`` is also passed ``s`` ``[B]``, the time at which its step
    ends. One with a false attribute ``time_conditioned`` says that its answer depends on ``x_t`` alone.
    """

    def __call__(self, x_t: Tensor, t: Tensor, /, **cond: Any) -> Tensor: ...


@runtime_checkable
class FeatureDenoiser(Protocol):
    """A denoiser whose head can be run alone: ``logits = project(features(x_t, t, **cond))``.

    ``features`` returns ``[B, L, D]``; ``project`` maps ``[..., D]`` to ``[..., V]``.
    """

    def features(self, x_t: Tensor, t: Tensor, /, **cond: Any) -> Tensor: ...

    def project(self, features: Tensor, /) -> Tensor: ...


def projection_of(denoiser: FeatureDenoiser) -> Callable[[Tensor], Tensor]:
    """The denoiser's ``projection()``, prepared for several chunks of features, or its ``project`` if it has none."""
    prepare = getattr(denoiser, "projection", None)
    made: Callable[[Tensor], Tensor] = denoiser.project if prepare is None else prepare()
    return made


def step_kwargs(denoiser: Denoiser, s: Tensor | None) -> dict[str, Tensor]:
    """``{"s": s}`` for a denoiser that is told where its step ends, else nothing."""
    return {"s": s} if s is not None and getattr(denoiser, "accepts_step", False) else {}


def ignores_time(denoiser: Denoiser) -> bool:
    """Whether the denoiser says that its answer depends on the tokens alone."""
    return getattr(denoiser, "time_conditioned", True) is False


def logits_at(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, rows: Tensor, *, s: Tensor | None = None, **cond: Any
) -> Tensor:
    """Raw logits at chosen positions; the head runs on those rows alone where the denoiser lets it.

    Args:
        denoiser: any `Denoiser`; a `FeatureDenoiser` saves the head on all other rows.
        x_t: int64 ``[B, L]``.
        t: ``[B]``.
        rows: int64 ``[N]``, positions in the flattened ``[B * L]``.
        s: ``[B]``, where the step ends, for denoisers that accept it.
        **cond: passed on.

    Returns:
        ``[N, V]``.
    """
    cond = {**cond, **step_kwargs(denoiser, s)}
    if isinstance(denoiser, FeatureDenoiser):
        features_BLD = denoiser.features(x_t, t, **cond)
        return denoiser.project(features_BLD.flatten(0, 1)[rows])
    return denoiser(x_t, t, **cond).flatten(0, 1)[rows]
