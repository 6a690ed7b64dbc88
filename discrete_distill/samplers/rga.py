"""Reward-guided ancestral sampling (RGAS) of DiDi-Instruct, arXiv 2509.25035."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from ..canvas import Canvas
from ..kernels import STREAM_CANDIDATE, sample_rows, uniform
from ..models.discriminator import Discriminator, RatioNetwork, masked_mean
from ..process import Denoiser, MaskedDiffusion
from .ancestral import ancestral_step, revealed_rows
from .output import SamplerOutput
from .trajectory import StepCallback, walk


@dataclass(frozen=True)
class RGASampler:
    """Ancestral sampling that a discriminator guides: the first steps tilt the logits, the others re-rank candidates.

    With the reward ``r = -logit`` of the discriminator (student against reference):

    * tilt: tokens are drawn from ``log p(x_i | z_t) + h clip(d r / d log p(x_i | z_t), -1, 1)``, renormalised, where
      the discriminator reads the soft embedding ``softmax(log p) @ E`` at masked positions; ``h`` runs over ``tilt``;
    * re-rank: ``M`` candidates of ``z_s`` from one call of the denoiser, revealing the same positions; one is kept,
      drawn from ``softmax(rerank_scale * score)`` at time ``s``. Since each logit of the discriminator estimates the
      log-ratio of the whole sequence, the *mean* over positions at scale 1 is importance resampling towards the
      reference.

    ``M = 1`` with no tilted step is the ancestral sampler, token for token.

    Args:
        process: mask and schedule.
        num_steps: steps on a uniform grid from 1 to 0.
        num_candidates: ``M`` (paper: 4).
        tilt: ``h`` at the first and last tilted step (paper: 30, 40).
        tilt_fraction: fraction of steps, from the start, that tilt and do not re-rank (paper: 0.5).
        normalize: "mean" or "sum" of scores over positions, in tilting and re-ranking alike.
        rerank_positions: "all" positions, or those still "masked" (which leaves the last step unranked).
        rerank_scale: multiplies the scores before the softmax.
        temperature: of the tokens.

    Raises:
        ValueError: if a number is out of range.
    """

    process: MaskedDiffusion
    num_steps: int = 16
    num_candidates: int = 4
    tilt: tuple[float, float] = (30.0, 40.0)
    tilt_fraction: float = 0.0
    normalize: Literal["mean", "sum"] = "mean"
    rerank_positions: Literal["all", "masked"] = "all"
    rerank_scale: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, got {self.num_candidates}")
        if not 0.0 <= self.tilt_fraction <= 1.0:
            raise ValueError(f"tilt_fraction must lie in [0, 1], got {self.tilt_fraction}")
        if self.normalize not in ("mean", "sum"):
            raise ValueError(f'normalize is "mean" or "sum", got {self.normalize!r}')
        if self.rerank_positions not in ("all", "masked"):
            raise ValueError(f'rerank_positions is "all" or "masked", got {self.rerank_positions!r}')

    def __call__(
        self,
        denoiser: Denoiser,
        discriminator: RatioNetwork,
        shape: tuple[int, int] | None = None,
        *,
        x_init: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        return_history: bool = False,
        callback: StepCallback | None = None,
        **cond: Any,
    ) -> SamplerOutput:
        """Draw sequences; arguments as in `AncestralSampler`.

        Args:
            discriminator: a `RatioNetwork`; tilting needs one that reads embeddings (`Discriminator`).

        Raises:
            TypeError: if steps are to be tilted and the discriminator cannot read embeddings.
        """
        if self.tilted_steps and not isinstance(discriminator, Discriminator):
            raise TypeError(
                "tilting differentiates through soft embeddings and needs a discrete_distill Discriminator, got "
                f"{type(discriminator).__name__}; set tilt_fraction=0 to re-rank only"
            )
        canvas = Canvas(
            self.process,
            shape,
            x_init=x_init,
            attention_mask=attention_mask,
            generator=generator,
            device=device,
        )

        def reverse_step(step: int, t: Tensor, s: Tensor) -> tuple[int, int]:
            return self._step(canvas, denoiser, discriminator, step, t, s, **cond)

        return walk(canvas, self.num_steps, reverse_step, return_history=return_history, callback=callback)

    @property
    def tilted_steps(self) -> int:
        """How many of the first steps tilt."""
        return round(self.tilt_fraction * self.num_steps)

    def strength(self, step: int) -> float:
        """``h`` of a tilted step, linear from the first to the last of them."""
        first, last = self.tilt
        return first + (last - first) * step / max(self.tilted_steps - 1, 1)

    def _step(
        self,
        canvas: Canvas,
        denoiser: Denoiser,
        discriminator: RatioNetwork,
        step: int,
        t: Tensor,
        s: Tensor,
        **cond: Any,
    ) -> tuple[int, int]:
        """One step in place; the number of denoiser calls, and of discriminator calls (a backward pass is two)."""
        if step < self.tilted_steps:
            assert isinstance(discriminator, Discriminator)
            return self._tilted_step(canvas, denoiser, discriminator, step, t, s, **cond)
        if self.num_candidates == 1:
            with torch.no_grad():
                return ancestral_step(canvas, denoiser, step, t, s, temperature=self.temperature, **cond), 0
        return self._reranked_step(canvas, denoiser, discriminator, step, t, s, **cond)

    def _tilted_step(
        self,
        canvas: Canvas,
        denoiser: Denoiser,
        discriminator: Discriminator,
        step: int,
        t: Tensor,
        s: Tensor,
        **cond: Any,
    ) -> tuple[int, int]:
        rows = canvas.masked().flatten().nonzero().squeeze(1)
        if not len(rows):
            return 0, 0
        with torch.no_grad():
            logits_NV = canvas.logits(denoiser, rows, t, s, **cond)
        gradient_NV = self.reward_gradient(canvas, discriminator, rows, logits_NV, t)
        revealed = torch.isin(rows, revealed_rows(canvas, step, t, s), assume_unique=True)
        drawn = sample_rows(
            logits_NV[revealed],
            seed=canvas.seed,
            rows_R=rows[revealed],
            step=step,
            temperature=self.temperature,
            mask_token_id=self.process.mask_token_id,
            tilt=gradient_NV[revealed],
            tilt_scale=self.strength(step),
        )
        canvas.write(rows[revealed], drawn.tokens[:, 0], drawn.log_probs[:, 0])
        return 1, 3

    def reward_gradient(
        self, canvas: Canvas, discriminator: Discriminator, rows: Tensor, logits_NV: Tensor, t: Tensor
    ) -> Tensor:
        """``d reward / d log p`` at masked positions ``rows``, ``[N, V]``; parameters collect no gradient."""
        with torch.enable_grad():
            log_probs_NV = self.process.masked_log_probs(logits_NV.detach()).requires_grad_()
            embedding_VD = discriminator.embedding_weight().detach()
            soft_ND = log_probs_NV.softmax(-1).to(embedding_VD.dtype) @ embedding_VD
            hard_BLD = discriminator.backbone.embed(canvas.z).detach()
            h_BLD = hard_BLD.flatten(0, 1).index_copy(0, rows, soft_ND.to(hard_BLD.dtype)).view_as(hard_BLD)
            logits_BL = discriminator.from_embeddings(h_BLD, t, attention_mask=canvas.attention_mask)
            reward = self._score(logits_BL, canvas.masked())
            (gradient,) = torch.autograd.grad(reward.sum(), log_probs_NV)
        # The mask has probability 0 and log-probability -inf; softmax's backward is 0 there.
        return torch.nan_to_num(gradient, nan=0.0)

    @torch.no_grad()
    def _reranked_step(
        self,
        canvas: Canvas,
        denoiser: Denoiser,
        discriminator: RatioNetwork,
        step: int,
        t: Tensor,
        s: Tensor,
        **cond: Any,
    ) -> tuple[int, int]:
        rows = revealed_rows(canvas, step, t, s)
        if not len(rows):
            return 0, 0
        drawn = sample_rows(
            canvas.logits(denoiser, rows, t, s, **cond),
            seed=canvas.seed,
            rows_R=rows,
            step=step,
            num_candidates=self.num_candidates,
            temperature=self.temperature,
            mask_token_id=self.process.mask_token_id,
        )
        scores = [self._candidate_scores(canvas, discriminator, rows, tokens, s) for tokens in drawn.tokens.unbind(1)]
        chosen_B = self._choose(canvas, step, torch.stack(scores, dim=1))
        pick = chosen_B[rows // canvas.z.shape[1], None]
        canvas.write(rows, drawn.tokens.gather(1, pick)[:, 0], drawn.log_probs.gather(1, pick)[:, 0])
        return 1, self.num_candidates

    def _candidate_scores(
        self, canvas: Canvas, discriminator: RatioNetwork, rows: Tensor, tokens: Tensor, s: Tensor
    ) -> Tensor:
        candidate = canvas.z.flatten().index_copy(0, rows, tokens).view_as(canvas.z)
        mask = {} if canvas.attention_mask is None else {"attention_mask": canvas.attention_mask}
        if self.rerank_positions == "masked":
            counted = self.process.is_masked(candidate) & canvas.movable
        else:
            counted = canvas.movable
        return self._score(discriminator(candidate, s, **mask), counted)

    def _score(self, logits_BL: Tensor, counted: Tensor) -> Tensor:
        """Reward ``[B]`` of each sequence: minus the logits, averaged or summed over counted positions, fp32."""
        logits_BL = logits_BL.float()
        return -masked_mean(logits_BL, counted) if self.normalize == "mean" else -(logits_BL * counted).sum(1)

    def _choose(self, canvas: Canvas, step: int, scores_BM: Tensor) -> Tensor:
        """Candidate of each sequence, drawn from ``softmax(scale * score)``, int64 ``[B]``."""
        numbers = torch.arange(canvas.batch, device=scores_BM.device)
        draw = uniform(canvas.seed, row=numbers, step=step, stream=STREAM_CANDIDATE)
        cumulative = torch.softmax(self.rerank_scale * scores_BM.double(), dim=1).cumsum(1)
        return (draw[:, None] > cumulative).sum(1).clamp(max=self.num_candidates - 1)
