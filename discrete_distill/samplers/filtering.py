"""How a token is drawn from a row of logits: temperature, the most likely tokens only, precision, or no chance at all.

Shape suffixes: n positions of a chunk, V vocabulary, M candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import STREAM_TOKEN, SampledRows, philox_4x32, sample_rows
from ..kernels.philox import to_unit_interval
from ..kernels.reference_sampling import inverse_cdf


class TokenDistribution(NamedTuple):
    """The distribution ``p(v)`` proportional to ``exp(logit_v / temperature)`` over the tokens that are kept.

    The mask is never one of them.

    Attributes:
        mask_token_id: the class that is never drawn.
        temperature: above 0.
        top_k: keep the ``k`` most likely (and what ties with the last of them).
        top_p: then keep the fewest that hold at least this probability.
        precision: ``torch.float32`` or ``torch.float64``.
    """

    mask_token_id: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    precision: torch.dtype = torch.float32

    def restrict(self, logits_nV: Tensor) -> Tensor:
        """The logits with -inf at tokens that are not kept; the same tensor if all are."""
        if self.top_k is None and self.top_p is None:
            return logits_nV
        kept_nV = self.without_mask(logits_nV)
        if self.top_k is not None and self.top_k < kept_nV.shape[1]:
            least_n1 = kept_nV.topk(self.top_k, dim=1).values[:, -1:]
            kept_nV = kept_nV.masked_fill(kept_nV < least_n1, float("-inf"))
        if self.top_p is not None and self.top_p < 1.0:
            descending = (kept_nV / self.temperature).softmax(-1).sort(dim=1, descending=True)
            before_nV = descending.values.cumsum(1, dtype=torch.float64) - descending.values
            outside_nV = torch.zeros_like(kept_nV, dtype=torch.bool)
            outside_nV.scatter_(1, descending.indices, before_nV >= self.top_p)
            kept_nV = kept_nV.masked_fill(outside_nV, float("-inf"))
        return kept_nV

    def without_mask(self, logits_nV: Tensor) -> Tensor:
        """A copy in the precision of the draw, with -inf at the mask."""
        logits_nV = logits_nV.to(self.precision, copy=True)
        logits_nV[:, self.mask_token_id] = float("-inf")
        return logits_nV

    def probabilities(self, logits_nV: Tensor) -> Tensor:
        """``[n, V]``."""
        return (self.without_mask(self.restrict(logits_nV)) / self.temperature).softmax(-1)

    def undrawable(self, logits_nV: Tensor) -> dict[str, Tensor]:
        """Bool ``[n]`` by reason: positions without a token to draw."""
        words_nV = self.without_mask(self.restrict(logits_nV))
        return {
            "are NaN": words_nV.isnan().any(1),
            "are +inf": words_nV.isposinf().any(1),
            "are all -inf": words_nV.isneginf().all(1),
        }

    def draw(
        self,
        logits_nV: Tensor,
        *,
        seed: Tensor,
        positions: Tensor,
        step: int,
        num_candidates: int = 1,
        active: Tensor | None = None,
        return_entropy: bool = False,
        tilt: Tensor | None = None,
        tilt_scale: float | None = None,
    ) -> SampledRows:
        """Tokens of a chunk; arguments as in `sample_rows`."""
        logits_nV = self.restrict(logits_nV)
        if self.precision == torch.float64:
            if tilt is not None and tilt_scale is not None:
                strength = self.temperature * tilt_scale
                logits_nV = logits_nV.double() + strength * tilt.double().clamp(-1.0, 1.0)
            return self._draw_fp64(logits_nV, seed, positions, step, num_candidates, active, return_entropy)
        return sample_rows(
            logits_nV,
            seed=seed,
            positions_R=positions,
            step=step,
            num_candidates=num_candidates,
            temperature=self.temperature,
            mask_token_id=self.mask_token_id,
            active_R=active,
            return_entropy=return_entropy,
            tilt=tilt,
            tilt_scale=tilt_scale,
        )

    def _draw_fp64(
        self,
        logits_nV: Tensor,
        seed: Tensor,
        positions: Tensor,
        step: int,
        num_candidates: int,
        active: Tensor | None,
        return_entropy: bool,
    ) -> SampledRows:
        """Inverse CDF over the vocabulary in its own order, by the 64 bits of a counter: another definition than that
        of `sample_rows`, so other tokens from one seed, and the same distribution."""
        log_probs_nV = (self.without_mask(logits_nV) / self.temperature).log_softmax(-1)
        candidates = torch.arange(num_candidates, device=positions.device)
        high, low, _, _ = philox_4x32(seed, candidates, positions[:, None], step, STREAM_TOKEN)
        uniforms_nM = to_unit_interval(high) + (to_unit_interval(low) - 0.5) * 2.0**-32
        tokens_nM, _ = inverse_cdf(log_probs_nV.exp(), uniforms_nM)
        chosen_nM = log_probs_nV.gather(1, tokens_nM).float()
        valid_n1 = log_probs_nV.amax(1, keepdim=True).isfinite()
        tokens_nM = torch.where(valid_n1, tokens_nM, -1)
        chosen_nM = torch.where(valid_n1, chosen_nM, float("nan"))
        entropy_n = None
        if return_entropy:
            entropy_n = -(log_probs_nV.exp() * log_probs_nV.clamp(min=-1e4)).sum(1).float()
        if active is not None:
            tokens_nM = torch.where(active[:, None], tokens_nM, -1)
            chosen_nM = torch.where(active[:, None], chosen_nM, 0.0)
            entropy_n = None if entropy_n is None else torch.where(active, entropy_n, 0.0)
        return SampledRows(tokens_nM, chosen_nM, entropy_n)

    def most_likely(
        self, logits_nV: Tensor, *, active: Tensor | None = None, return_entropy: bool = False
    ) -> SampledRows:
        """The most likely token of each row, with its log-probability at this distribution."""
        log_probs_nV = (self.without_mask(self.restrict(logits_nV)) / self.temperature).log_softmax(-1)
        best = log_probs_nV.max(1, keepdim=True)
        valid_n1 = best.values.isfinite()
        if active is not None:
            valid_n1 = valid_n1 & active[:, None]
        tokens_n1 = torch.where(valid_n1, best.indices, -1)
        log_probs_n1 = torch.where(valid_n1, best.values, float("nan")).float()
        if active is not None:
            log_probs_n1 = torch.where(active[:, None], log_probs_n1, 0.0)
        entropy_n = None
        if return_entropy:
            entropy_n = -(log_probs_nV.exp() * log_probs_nV.clamp(min=-1e4)).sum(1).float()
        return SampledRows(tokens_n1, log_probs_n1, entropy_n)
