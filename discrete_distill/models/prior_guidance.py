"""Guidance by the prior: a denoiser that relies more on what it sees."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from ..process import evaluation_mode
from .dit import DiT

SMALLEST = 1e-9


@torch.no_grad()
def prior_log_probs(network: DiT, mask_token_id: int) -> Tensor:
    """``log p(x)`` of a token of which nothing is known, ``[V]``: the network's answer to its longest sequence of
    masks, averaged over positions. Entries below ``1e-9``, that of the mask among them, are raised to it.

    Args:
        network: denoiser; asked in evaluation mode, and left in its own.
        mask_token_id: of the mask.

    Raises:
        TypeError: if it is no `DiT`.
        ValueError: if the mask lies outside its vocabulary.
    """
    if not isinstance(network, DiT):
        raise TypeError(f"guidance by the prior is folded into the head of a DiT; got a {type(network).__name__}")
    if not 0 <= mask_token_id < network.config.vocab_size:
        raise ValueError(f"mask_token_id {mask_token_id} lies outside the vocabulary of {network.config.vocab_size}")
    parameter = next(network.parameters())
    x_t = torch.full((1, network.config.max_length), mask_token_id, device=parameter.device)
    with evaluation_mode(network):
        logits_LV = network(x_t, torch.ones(1, device=parameter.device))[0].float()
    logits_LV[:, mask_token_id] = -math.inf
    return logits_LV.softmax(-1).mean(0).clamp_min(SMALLEST).log()


@torch.no_grad()
def guide_by_prior(network: DiT, weight: float, mask_token_id: int) -> DiT:
    """A copy that answers, up to normalisation, ``(1 + w) log p(x_i | x_t) - w log p(x)``: unsupervised classifier-free
    guidance (arXiv 2410.18514), which raises what the visible tokens speak for and lowers what is merely frequent.

    ``p(x)`` is `prior_log_probs`, the same for all positions, so the whole of it goes into the head: the copy is a
    network of the same shape and costs as many evaluations. As the teacher of a distillation it is a distribution that
    no temperature of the teacher reaches.

    Args:
        network: to be guided; left as it is.
        weight: ``w``; 0 changes nothing.
        mask_token_id: of the mask.

    Raises:
        ValueError: if the weight is negative or not finite, or the mask lies outside the vocabulary.
        TypeError: if it is no `DiT`.
    """
    if not 0.0 <= weight < math.inf:
        raise ValueError(f"the weight of guidance must be finite and not negative, got {weight}")
    prior = prior_log_probs(network, mask_token_id)
    guided = copy.deepcopy(network)
    head = guided.output_layer.linear
    head.weight.mul_(1.0 + weight)
    head.bias.mul_(1.0 + weight).sub_(weight * prior)
    return guided
