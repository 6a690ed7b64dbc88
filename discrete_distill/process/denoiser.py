"""The `Denoiser` protocol, and the logits of a denoiser at chosen positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Generator, Tensor, nn

from ..checks import check_per_row
from .conditions import call_network, name_of

LogitsOfPart = Callable[[slice], Tensor]


class Denoiser(Protocol):
    """Any callable from noisy tokens to raw logits.

    ``denoiser(x_t, t, **model_kwargs) -> logits`` with ``x_t`` int64 ``[B, L]``, ``t`` fp32 ``[B]`` in ``[0, 1]`` and
    logits ``[B, L, V]``. The logits are raw: the process removes the mask from them and keeps visible tokens
    (`MaskedDiffusion.log_probs`). They are never written into.

    A denoiser with a true attribute ``accepts_step`` is also passed ``s`` ``[B]``, the time at which its step
    ends. One with a false attribute ``time_conditioned`` has logits that depend on ``x_t`` alone. An integer
    attribute ``num_classes`` states ``V``, so that token ids outside of it are refused before the network is called.

    Examples:
        >>> def uniform(x_t, t, **model_kwargs):
        ...     return torch.zeros(*x_t.shape, 9)  # Raw logits [B, L, V].
        >>> AncestralSampler(process, num_steps=4)(uniform, shape=(2, 16), generator=generator).nfe
        4
    """

    def __call__(self, x_t: Tensor, t: Tensor, /, **model_kwargs: Any) -> Tensor: ...


@runtime_checkable
class FeatureDenoiser(Protocol):
    """A denoiser whose head can be run alone: ``logits = project(features(x_t, t, **model_kwargs))``.

    ``features`` returns ``[B, L, D]``; ``project`` maps ``[..., D]`` to ``[..., V]``.

    Examples:
        >>> [isinstance(each, FeatureDenoiser) for each in (teacher, bert, as_denoiser(bert))]
        [True, False, True]
        >>> features = teacher.features(x_t, t)  # [8, 16, 16]
        >>> bool((teacher.project(features[:, :2]) == teacher(x_t, t)[:, :2]).all())
        True
    """

    def features(self, x_t: Tensor, t: Tensor, /, **model_kwargs: Any) -> Tensor: ...

    def project(self, features: Tensor, /) -> Tensor: ...


def device_of(denoiser: Denoiser, generator: Generator | None = None) -> torch.device:
    """Device of the denoiser's first parameter; of the generator for a denoiser that has none; else the CPU."""
    first = next(denoiser.parameters(), None) if isinstance(denoiser, nn.Module) else None
    if first is not None and not first.is_meta:
        return first.device
    return generator.device if generator is not None else torch.device("cpu")


class FeatureParts(NamedTuple):
    """The two functions of a `FeatureDenoiser`."""

    features: Callable[..., Tensor]
    project: Callable[[Tensor], Tensor]


_compiled_features: WeakKeyDictionary[Any, Callable[..., Tensor]] = WeakKeyDictionary()


def feature_parts(denoiser: Denoiser) -> FeatureParts | None:
    """``features`` and ``project`` of a `FeatureDenoiser`; None for any other callable.

    A module behind ``torch.compile`` hands on the attributes of the original, which run eagerly: its ``features`` are
    compiled here, with the backend and the options of the wrapper.
    """
    original, compiler = getattr(denoiser, "_orig_mod", None), getattr(denoiser, "dynamo_ctx", None)
    if original is None or compiler is None:
        return FeatureParts(denoiser.features, denoiser.project) if isinstance(denoiser, FeatureDenoiser) else None
    if not isinstance(original, FeatureDenoiser):
        return None
    if denoiser not in _compiled_features:
        _compiled_features[denoiser] = compiler(original.features)
    return FeatureParts(_compiled_features[denoiser], original.project)


def prepared_projection(denoiser: Denoiser, parts: FeatureParts) -> Callable[[Tensor], Tensor]:
    """The denoiser's ``projection()``, prepared for several chunks of features, or its ``project`` if it has none."""
    prepare = getattr(denoiser, "projection", None)
    made: Callable[[Tensor], Tensor] = parts.project if prepare is None else prepare()
    return made


def step_kwargs(denoiser: Denoiser, s: Tensor | None) -> dict[str, Tensor]:
    """``{"s": s}`` for a denoiser that is passed the end of its step, else nothing.

    Examples:
        >>> step_kwargs(teacher, s=t - 0.25)  # It was made without conditioning on the step.
        {}
    """
    return {"s": s} if s is not None and getattr(denoiser, "accepts_step", False) else {}


def ignores_time(denoiser: Denoiser) -> bool:
    """Whether the denoiser states that its logits depend on the tokens alone.

    Examples:
        >>> ignores_time(teacher), ignores_time(DiT(DiTConfig(**{**vars(shape), "time_conditioning": True})))
        (True, False)
    """
    return getattr(denoiser, "time_conditioned", True) is False


def check_ids(denoiser: Denoiser, largest_id: int) -> None:
    """Refuse token ids outside the vocabulary that the denoiser states."""
    size = getattr(denoiser, "num_classes", None)
    if isinstance(size, int) and largest_id >= size:
        raise _unknown_id(largest_id, size)


def _unknown_id(largest_id: int, size: int) -> ValueError:
    return ValueError(
        f"token id {largest_id} is outside the {size} classes of the denoiser; its vocabulary must hold the mask, "
        "every given token and every forbidden one (is it the process's mask_token_id?)"
    )


def logits_at(
    denoiser: Denoiser,
    x_t: Tensor,
    t: Tensor,
    positions: Tensor,
    *,
    s: Tensor | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    """Raw logits at chosen positions; the head runs on those positions alone where the denoiser lets it.

    Args:
        denoiser: any `Denoiser`; a `FeatureDenoiser` saves the head on all other positions.
        x_t: int64 ``[B, L]``.
        t: ``[B]``.
        positions: int64 ``[N]``, positions in the flattened ``[B * L]``.
        s: ``[B]``, where the step ends, for denoisers that accept it.
        model_kwargs: passed to the denoiser by keyword.

    Returns:
        ``[N, V]``.

    Raises:
        TypeError: if the denoiser does not take a condition, or returns something else than floating logits, or ``t``
            or ``positions`` is of another type.
        ValueError: if its logits are not ``[B, L, V]``, ``t`` is not ``[B]``, or a position is outside ``[0, B * L)``
            (checked on a CPU only).

    Examples:
        >>> denoiser, masked = as_denoiser(bert), process.is_masked(x_t)
        >>> logits = logits_at(denoiser, x_t, t, masked.flatten().nonzero()[:, 0])  # [N, 9]
        >>> torch.allclose(logits, denoiser(x_t, t)[masked], atol=1e-5)
        True
    """
    _check_positions(positions)
    if positions.device.type == "cpu" and not torch.compiler.is_compiling() and len(positions):
        first, last = int(positions.min()), int(positions.max())
        if not 0 <= first <= last < x_t.numel():
            raise ValueError(f"positions from {first} to {last} do not all lie in the {x_t.numel()} positions")
    return logits_in_parts(denoiser, x_t, t, positions, s=s, model_kwargs=model_kwargs)(slice(None))


def logits_in_parts(
    denoiser: Denoiser,
    x_t: Tensor,
    t: Tensor,
    positions: Tensor,
    *,
    s: Tensor | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    largest_id: int = 0,
) -> LogitsOfPart:
    """Call the denoiser once, and compute `logits_at` a part of the positions at a time.

    Args:
        denoiser: any `Denoiser`.
        x_t: int64 ``[B, L]``.
        t: ``[B]``.
        positions: int64 ``[N]``, positions in the flattened ``[B * L]``.
        s: ``[B]``, where the step ends, for denoisers that accept it.
        model_kwargs: passed to the denoiser by keyword.
        largest_id: of the tokens and the mask; the vocabulary must hold it.

    Returns:
        ``logits(part: slice) -> [n, V]``.

    Raises:
        TypeError: as `logits_at`.
        ValueError: as `logits_at`, but the values of ``positions`` are not checked; or if the vocabulary does not hold
            ``largest_id``.

    Examples:
        >>> positions = process.is_masked(x_t).flatten().nonzero()[:, 0]
        >>> part = logits_in_parts(teacher, x_t, t, positions)
        >>> part(slice(0, 4)).shape
        torch.Size([4, 9])
    """
    check_ids(denoiser, largest_id)
    check_per_row("t", t, len(x_t))
    _check_positions(positions)
    keywords = {**(model_kwargs or {}), **step_kwargs(denoiser, s)}
    parts = feature_parts(denoiser)
    if parts is None:
        logits_BLV = call_network(denoiser, denoiser, x_t, t, model_kwargs=keywords)
        logits_rV = _checked(denoiser, "logits", logits_BLV, x_t, "V").flatten(0, 1)
        if largest_id >= logits_rV.shape[1]:
            raise _unknown_id(largest_id, logits_rV.shape[1])
        return lambda part: logits_rV[positions[part]]
    features_BLD = call_network(denoiser, parts.features, x_t, t, model_kwargs=keywords)
    features_ND = _checked(denoiser, "features", features_BLD, x_t, "D").flatten(0, 1)[positions]

    project = prepared_projection(denoiser, parts)

    def projected(part: slice) -> Tensor:
        features_nD = features_ND[part]
        logits_nV = project(features_nD)
        if logits_nV.dim() != 2 or len(logits_nV) != len(features_nD):
            raise ValueError(
                f"project of {name_of(denoiser)} returned logits {list(logits_nV.shape)} for features "
                f"{list(features_nD.shape)}; it maps [..., D] to [..., V]"
            )
        if largest_id >= logits_nV.shape[1]:
            raise _unknown_id(largest_id, logits_nV.shape[1])
        return logits_nV

    return projected


def _check_positions(positions: Tensor) -> None:
    if not isinstance(positions, Tensor) or positions.dtype != torch.long:
        found = positions.dtype if isinstance(positions, Tensor) else type(positions).__name__
        raise TypeError(f"positions must be int64 positions of the flattened batch, got {found}")
    if positions.dim() != 1:
        raise ValueError(f"positions must be [N], got shape {list(positions.shape)}")


def _checked(denoiser: Denoiser, kind: str, values: Any, x_t: Tensor, last: str) -> Tensor:
    """The values, if they are floating ``[B, L, ...]``."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(
            f"a denoiser returns {kind} as a floating tensor [B, L, {last}], and {name_of(denoiser)} returned {got}; "
            "a Hugging Face model is made one by as_denoiser(model)"
        )
    batch, length = x_t.shape
    if values.dim() != 3 or values.shape[:2] != x_t.shape or values.shape[2] == 0:
        raise ValueError(
            f"{kind} of {name_of(denoiser)} have shape {list(values.shape)} for tokens {list(x_t.shape)}; a denoiser "
            f"returns [{batch}, {length}, {last}]"
        )
    return values
