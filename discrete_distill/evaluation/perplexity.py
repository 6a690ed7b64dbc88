"""Generative perplexity: how surprising samples are to a judge that is named."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_count
from .checks import check_token_ids, exponential
from .judges import Judge


@dataclass(frozen=True, kw_only=True)
class GenerativePerplexity:
    """Perplexity of samples under a judge. Diversity is not measured: report an entropy with it.

    Attributes:
        judge: name of the judge.
        precision: arithmetic in which the samples were drawn, as "fp32" or "fp64".
        num_samples: samples judged.
        num_tokens: tokens counted, in the judge's tokens.
        sample_nats: nats of each sample, summed over its counted tokens.
        sample_tokens: counted tokens of each sample.

    Examples:
        >>> figures = generative_perplexity(data, judge, precision="fp32")
        >>> figures.judge, figures.num_tokens  # The first token of a sample is context: 8 * 15.
        ('2-gram@...', 120)
        >>> round(figures.nats_per_token - sum(figures.sample_nats) / 120, 6)
        0.0
    """

    judge: str
    precision: str
    num_samples: int
    num_tokens: int
    sample_nats: tuple[float, ...]
    sample_tokens: tuple[int, ...]

    @property
    def nats_per_token(self) -> float:
        """Mean over all counted tokens (not over batches or samples), in nats."""
        return math.fsum(self.sample_nats) / self.num_tokens

    @property
    def perplexity(self) -> float:
        """``exp(nats_per_token)``; infinite above 709 nats."""
        return exponential(self.nats_per_token)

    @property
    def standard_error(self) -> float | None:
        """Of `nats_per_token`, over samples, in nats: that of a ratio of two means. None for a single sample.

        ``sqrt(n / (n - 1) * sum_i (nats_i - r * tokens_i)^2) / sum_i tokens_i`` with ``r`` the nats per
        token. The standard error of the perplexity is this times the perplexity.
        """
        if self.num_samples < 2:
            return None
        rate = self.nats_per_token
        residuals = (n - rate * k for n, k in zip(self.sample_nats, self.sample_tokens, strict=True))
        square_sum = math.fsum(residual**2 for residual in residuals)
        return math.sqrt(self.num_samples / (self.num_samples - 1) * square_sum) / self.num_tokens


def generative_perplexity(
    sequences_NL: Tensor,
    judge: Judge,
    *,
    precision: str = "fp32",
    mask_token_id: int | None = None,
    batch_size: int = 16,
) -> GenerativePerplexity:
    """``exp(sum of nats / number of tokens)`` over every counted token of every sample.

    Args:
        sequences_NL: samples, int64 ``[N, L]``.
        judge: who prices them; loaded by the caller, once.
        precision: arithmetic in which the samples were drawn; low precision makes samplers look better than
            they are (arXiv 2409.02908), so it is part of the result.
        mask_token_id: with it, samples that still hold masks are refused.
        batch_size: samples a judge sees at once; no effect on the result.

    Raises:
        TypeError: if the samples are no integers.
        ValueError: for an empty or misshapen set of samples, a batch size below 1, samples with masks left in
            them, prices that are not finite, or samples without a single token to count.

    Examples:
        >>> out = AncestralSampler(process, num_steps=8)(student, shape=(8, 16), generator=generator)
        >>> figures = generative_perplexity(out.sequences, judge, mask_token_id=8)
        >>> figures.perplexity > 1.0, figures.standard_error > 0.0
        (True, True)
    """
    check_token_ids(sequences_NL)
    batch_size = min(check_count("batch_size", batch_size), len(sequences_NL))
    _refuse_masks(sequences_NL, mask_token_id)
    nats: list[float] = []
    tokens: list[int] = []
    for chunk_BL in sequences_NL.split(batch_size):
        priced = judge.token_nats(chunk_BL)
        if priced.nats.shape != priced.loss_mask.shape or len(priced.nats) != len(chunk_BL):
            raise ValueError(
                f"judge {judge.name!r} gave nats {list(priced.nats.shape)} and counted {list(priced.loss_mask.shape)} "
                f"for {len(chunk_BL)} samples"
            )
        nats += priced.nats.double().masked_fill(~priced.loss_mask, 0.0).sum(dim=1).tolist()
        tokens += priced.loss_mask.sum(dim=1).tolist()
    if not all(map(math.isfinite, nats)):
        raise ValueError(f"judge {judge.name!r} gave nats that are not finite; run it in fp32 or look at its weights")
    if not any(tokens):
        raise ValueError(f"judge {judge.name!r} counted no token: every sample is a single token or no text at all")
    return GenerativePerplexity(
        judge=judge.name,
        precision=precision,
        num_samples=len(nats),
        num_tokens=sum(tokens),
        sample_nats=tuple(nats),
        sample_tokens=tuple(tokens),
    )


def _refuse_masks(sequences_NL: Tensor, mask_token_id: int | None) -> None:
    if mask_token_id is None:
        return
    left = int(torch.count_nonzero(sequences_NL == mask_token_id))
    if left:
        raise ValueError(
            f"{left} of {sequences_NL.numel()} tokens are still masks (id {mask_token_id}); finish sampling first"
        )
