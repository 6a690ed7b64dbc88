"""Guidance by the prior: a denoiser that weighs visible tokens more strongly."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from ..checks import check_count
from ..process import Denoiser, evaluation_mode
from .denoiser_view import DenoiserView
from .dit import DiT
from .wrappers import unwrap

SMALLEST = 1e-9


@torch.no_grad()
def prior_log_probs(denoiser: Denoiser, mask_token_id: int, *, length: int | None = None) -> Tensor:
    """``log p(x)`` of a token of which nothing is known, ``[V]``: the denoiser's prediction for a sequence of masks,
    averaged over positions. Entries below ``1e-9``, that of the mask among them, are raised to it.

    Args:
        denoiser: any; a network is read in evaluation mode, and left in its own.
        mask_token_id: of the mask.
        length: of the sequence, in tokens; a `DiT` has one of its own, its ``max_length``.

    Raises:
        ValueError: if the mask lies outside the vocabulary, or no length is given and the denoiser has none.
        TypeError: if it is not callable.

    Examples:
        >>> prior_log_probs(teacher, mask_token_id=8)[:8]  # log(1/8)
        tensor([-2.0794, -2.0794, -2.0794, -2.0794, -2.0794, -2.0794, -2.0794, -2.0794])
    """
    if not callable(denoiser):
        raise TypeError(f"guidance by the prior calls a denoiser, and a {type(denoiser).__name__} is not callable")
    inner: Any = unwrap(denoiser)[0]
    length = length if length is not None else inner.config.max_length if isinstance(inner, DiT) else None
    if length is None:
        raise ValueError(f"a {type(inner).__name__} does not say how long its sequences are: pass length=")
    check_count("length", length)
    vocabulary = getattr(denoiser, "num_classes", None)
    if mask_token_id < 0 or (vocabulary is not None and mask_token_id >= vocabulary):
        raise ValueError(f"mask_token_id {mask_token_id} lies outside the vocabulary of {vocabulary}")
    device = next((each.device for each in getattr(inner, "parameters", tuple)()), torch.device("cpu"))
    x_t = torch.full((1, length), mask_token_id, device=device)
    with evaluation_mode(denoiser):
        logits_LV = denoiser(x_t, torch.ones(1, device=device))[0].float()
    logits_LV = logits_LV.index_fill(1, torch.tensor([mask_token_id], device=device), -math.inf)
    return logits_LV.softmax(-1).mean(0).clamp_min(SMALLEST).log()


class PriorGuided(DenoiserView):
    """A denoiser whose logits are ``(1 + w) l - w log p(x)``; see `guide_by_prior`.

    Args:
        denoiser: any.
        weight: ``w``.
        prior: ``log p(x)``, ``[V]``.

    Examples:
        >>> prior = -torch.arange(9.0)  # Token 8 is the rarest.
        >>> PriorGuided(teacher, 0.5, prior)(x_t, t)[0, 0]  # 1.5 * 0 - 0.5 log p(x)
        tensor([0.0000, 0.5000, 1.0000, 1.5000, 2.0000, 2.5000, 3.0000, 3.5000, 4.0000], grad_fn=...)
    """

    prior: Tensor

    def __init__(self, denoiser: Any, weight: float, prior: Tensor) -> None:
        super().__init__(denoiser)
        self.weight = weight
        self.register_buffer("prior", prior)

    def forward(self, x_t: Tensor, t: Tensor, **model_kwargs: Any) -> Tensor:
        """Raw logits ``[B, L, V]``."""
        return self._guided(super().forward(x_t, t, **model_kwargs))

    def project(self, features: Tensor) -> Tensor:
        """Vocabulary logits ``[..., V]`` of features ``[..., D]``."""
        return self._guided(super().project(features))

    def _guided(self, logits: Tensor) -> Tensor:
        return (1.0 + self.weight) * logits - self.weight * self.prior.to(logits.dtype)


@torch.no_grad()
def guide_by_prior(denoiser: Any, weight: float, mask_token_id: int, *, length: int | None = None) -> Any:
    """Guide a denoiser by its own prior: ``(1 + w) log p(x_i | x_t) - w log p(x)``, up to normalisation.

    Unsupervised classifier-free guidance (arXiv 2410.18514), which raises tokens that the visible ones make likely and
    lowers tokens that are frequent anyway.

    ``p(x)`` is `prior_log_probs`, the same for all positions, so that it costs no further evaluation. As the teacher of
    a distillation it is a distribution that no temperature of the teacher reaches.

    Args:
        denoiser: to be guided; left as it is.
        weight: ``w``; 0 changes nothing.
        mask_token_id: of the mask.
        length: see `prior_log_probs`.

    Returns:
        Of a `DiT`, a copy with the guidance folded into its head; of any other denoiser, a `PriorGuided` that calls it.

    Raises:
        ValueError: if the weight is negative or not finite, or as `prior_log_probs`.
        TypeError: if it is not callable.

    Examples:
        >>> guided = guide_by_prior(as_denoiser(bert), weight=0.5, mask_token_id=8, length=16)
        >>> guided(x_t, t).shape
        torch.Size([8, 16, 9])
    """
    if not 0.0 <= weight < math.inf:
        raise ValueError(f"the weight of guidance must be finite and not negative, got {weight}")
    prior = prior_log_probs(denoiser, mask_token_id, length=length)
    if not isinstance(denoiser, DiT):
        return PriorGuided(denoiser, weight, prior)
    guided = copy.deepcopy(denoiser)
    head = guided.output_layer.linear
    head.weight.mul_(1.0 + weight)
    head.bias.mul_(1.0 + weight).sub_(weight * prior)
    return guided
