"""Likelihood of given text: an upper bound for a denoiser, the value itself for an autoregressive model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .. import draws
from ..checks import check_count
from ..process import Denoiser, MaskedDiffusion
from .checks import check_token_ids, exponential


@dataclass(frozen=True, kw_only=True)
class LikelihoodBound:
    """An estimate of the bound ``-log p(x) <= NELBO(x)``, per token, over a set of sequences.

    Attributes:
        nats_per_token: mean over all tokens, in nats.
        standard_error: of that, over sequences; None for one sequence.
        num_sequences: how many.
        num_tokens: counted tokens, once each.
        repeats: corruptions of each sequence.

    Examples:
        >>> bound = likelihood_bound(process, teacher, data, repeats=2, generator=generator)
        >>> round(bound.perplexity, 3), bound.num_tokens  # The untrained network guesses among 8 tokens.
        (8.0, 128)
    """

    nats_per_token: float
    standard_error: float | None
    num_sequences: int
    num_tokens: int
    repeats: int

    @property
    def perplexity(self) -> float:
        """``exp(nats_per_token)``; an upper bound of the model's perplexity."""
        return exponential(self.nats_per_token)


@torch.no_grad()
def likelihood_bound(
    process: MaskedDiffusion,
    denoiser: Denoiser,
    sequences_NL: Tensor,
    *,
    generation_mask: Tensor | None = None,
    repeats: int = 8,
    batch_size: int = 64,
    generator: Generator | None = None,
) -> LikelihoodBound:
    """Estimate the NELBO of sequences; of text from elsewhere, the zero-shot perplexity of MDLM (arXiv 2406.07524).

    Every sequence is corrupted ``repeats`` times, at numbers of masks that are spread evenly over all corruptions of a
    batch; the mean is unbiased for the bound. The error over sequences holds the noise of the masks too. Of a network
    that reads by blocks it is the bound of block diffusion.

    Args:
        process: mask and schedule.
        denoiser: any `Denoiser`, in evaluation mode.
        sequences_NL: clean tokens, int64 ``[N, L]``.
        generation_mask: bool ``[L]`` or ``[N, L]``, true at tokens whose likelihood is meant, all by default; the
            others are given, such as ``[CLS]`` and ``[SEP]``.
        repeats: corruptions of each.
        batch_size: sequences corrupted at once.
        generator: source of randomness, on their device.

    Raises:
        TypeError: if the sequences are no integers.
        ValueError: for no sequences, none of whose tokens is meant, sequences with masks, fewer than one repeat, a
            batch size below 1, or a bound that is not finite.

    Examples:
        >>> bound = likelihood_bound(process, as_denoiser(bert), data, repeats=4, generator=generator)
        >>> bound.num_sequences, bound.num_tokens, bound.repeats
        (8, 128, 4)
    """
    check_token_ids(sequences_NL, "sequences")
    check_count("repeats", repeats)
    batch_size = min(check_count("batch_size", batch_size), len(sequences_NL))
    if bool((sequences_NL == process.mask_token_id).any()):
        raise ValueError(f"sequences must be clean text, but hold masks (id {process.mask_token_id})")
    meant = torch.ones_like(sequences_NL, dtype=torch.bool)
    if generation_mask is not None:
        meant = meant & generation_mask.to(meant.device)
    sums, num_tokens = [], int(meant.sum())
    if not num_tokens:
        raise ValueError("generation_mask leaves no token whose likelihood is meant")
    for chunk, meant_chunk in zip(sequences_NL.split(batch_size), meant.split(batch_size), strict=True):
        many, generated = chunk.repeat(repeats, 1), meant_chunk.repeat(repeats, 1)
        # In random order, so that the even levels of a batch do not favour a sequence.
        order = draws.randperm(len(many), device=many.device, generator=generator)
        nats = torch.zeros(len(many), dtype=torch.float64, device=many.device)
        bound = process.nelbo(denoiser, many[order], by="count", generation_mask=generated[order], generator=generator)
        nats[order] = bound.nats.double()
        sums.append(nats.view(repeats, -1).mean(0))
    nats_N = torch.cat(sums)
    if not bool(nats_N.isfinite().all()):
        raise ValueError(
            f"the bound of {int((~nats_N.isfinite()).sum())} of {len(nats_N)} sequences is not finite; look at the "
            "denoiser's logits"
        )
    count = len(nats_N)
    return LikelihoodBound(
        nats_per_token=float(nats_N.sum()) / num_tokens,
        standard_error=float(nats_N.std() * count**0.5) / num_tokens if count > 1 else None,
        num_sequences=count,
        num_tokens=num_tokens,
        repeats=repeats,
    )
