"""Reward-guided ancestral sampling (RGAS) of DiDi-Instruct, arXiv 2509.25035."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from ..canvas import Canvas
from ..kernels import STREAM_CANDIDATE, STREAM_REMASK, uniform
from ..models.discriminator import Discriminator, RatioNetwork, masked_mean
from ..process import Denoiser
from .grid import coin_flags, walk_grid
from .options import GridOptions
from .output import SamplerOutput
from .ratio_score import Candidate, CandidateScorer
from .rows import Rows, planned_rows
from .run import Run
from .trajectory import StepCallback

Reward = Callable[..., Tensor]
"""``reward(z, t) -> [B]``, higher is better; passed ``attention_mask`` where there is one."""


@dataclass(frozen=True)
class RGASampler(GridOptions):
    """Ancestral sampling that a discriminator guides: the first steps tilt the logits, the others re-rank candidates.

    With the reward ``r = -logit`` of the discriminator (student against reference):

    * tilt: tokens are drawn from ``log p(x_i | z_t) + h clip(d r / d log p(x_i | z_t), -1, 1)``, renormalised, where
      the discriminator reads the soft embedding ``softmax(log p) @ E`` at masked positions; ``h`` runs over ``tilt``;
    * re-rank: ``M`` candidates of ``z_s`` from one call of the denoiser, revealing the same positions; one is kept,
      drawn from ``softmax(rerank_scale * score)`` at time ``s``. Since each logit of the discriminator estimates the
      log-ratio of the whole sequence, the *mean* over positions at scale 1 is importance resampling towards the
      reference.

    In place of a discriminator any reward ``reward(z, t) -> [B]`` re-ranks (it is used as it is: `normalize` and
    `rerank_positions` are for logits of positions), and so does a `CandidateScorer` such as `TeacherRatio`.

    ``M = 1`` with no tilted step is the ancestral sampler, token for token.

    Args:
        process: mask and schedule.
        num_steps: steps of the grid.
        num_candidates: ``M`` (paper: 4).
        tilt: ``h`` at the first and last tilted step (paper: 30, 40).
        tilt_fraction: fraction of steps, from the start, that tilt and do not re-rank (paper: 0.5).
        normalize: "mean" or "sum" of scores over positions, in tilting and re-ranking alike.
        rerank_positions: "all" positions, or those still "masked" (which leaves the last step unranked).
        rerank_scale: multiplies the scores before the softmax.

    The other options are those of `GridOptions` and `SamplerOptions`.

    Raises:
        ValueError: if a number is out of range.
    """

    num_candidates: int = 4
    tilt: tuple[float, float] = (30.0, 40.0)
    tilt_fraction: float = 0.0
    normalize: Literal["mean", "sum"] = "mean"
    rerank_positions: Literal["all", "masked"] = "all"
    rerank_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
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
        discriminator: RatioNetwork | Reward | CandidateScorer,
        shape: tuple[int, int] | None = None,
        *,
        x_init: Tensor | None = None,
        attention_mask: Tensor | None = None,
        writable: Tensor | None = None,
        first_row: int = 0,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        return_history: bool = False,
        callback: StepCallback | None = None,
        **cond: Any,
    ) -> SamplerOutput:
        """Draw sequences; arguments as in `AncestralSampler`.

        Args:
            discriminator: a `RatioNetwork`, logits ``[B, L]``; a reward, ``[B]``; or a `CandidateScorer`. Tilting needs
                one that reads embeddings (`Discriminator`).

        Raises:
            TypeError: if steps are to be tilted and the discriminator cannot read embeddings.
            ValueError: as in `AncestralSampler`; or if it returns neither ``[B, L]`` nor ``[B]``.
        """
        if self.tilted_steps and not isinstance(discriminator, Discriminator):
            raise TypeError(
                "tilting differentiates through soft embeddings and needs a discrete_distill Discriminator, got "
                f"{type(discriminator).__name__}; set tilt_fraction=0 to re-rank only"
            )
        with torch.no_grad():
            run = self.begin(
                denoiser,
                shape,
                x_init=x_init,
                attention_mask=attention_mask,
                writable=writable,
                first_row=first_row,
                generator=generator,
                device=device,
                cond=cond,
            )
            plan = _Plan(run, self.times, self.tilted_steps)

            def reverse_step(step: int, t: Tensor, s: Tensor) -> None:
                rows = plan.revealed[step]
                if not rows:
                    return
                if step < self.tilted_steps:
                    assert isinstance(discriminator, Discriminator)
                    self._tilted_step(run, discriminator, plan.masked[step], plan.places[step], step, t, s)
                elif self.num_candidates == 1:
                    run.reveal(rows, t, s, step)
                else:
                    self._reranked_step(run, discriminator, rows, step, t, s)

            return walk_grid(
                self, run, reverse_step, return_history=return_history, callback=callback, left=plan.revealed[-1]
            )

    @property
    def tilted_steps(self) -> int:
        """How many of the first steps tilt."""
        return round(self.tilt_fraction * (len(self.times) - 1))

    def strength(self, step: int) -> float:
        """``h`` of a tilted step, linear from the first to the last of them."""
        first, last = self.tilt
        return first + (last - first) * step / max(self.tilted_steps - 1, 1)

    def _tilted_step(
        self, run: Run, discriminator: Discriminator, rows: Rows, places: Tensor, step: int, t: Tensor, s: Tensor
    ) -> None:
        """Logits of all masked ``rows`` of sequences that reveal any, drawn and written at ``places`` among them."""
        logits_NV = run.logits(rows, t, s)(slice(None))
        gradient_NV = self.reward_gradient(run.canvas, discriminator, rows.index, logits_NV, t)
        # A forward pass, and a backward pass that is two.
        run.other_calls += 3
        revealed = Rows(rows.index[places], rows.sequences, rows.compact[places])
        drawn = run.law.draw(
            logits_NV[places],
            seed=run.canvas.seed,
            rows=run.canvas.row_numbers[revealed.index],
            step=step,
            tilt=gradient_NV[places],
            tilt_scale=self.strength(step),
        )
        run.write(revealed, drawn.tokens[:, 0], drawn.log_probs[:, 0])

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
            reward = self._reward(logits_BL, canvas.masked())
            (gradient,) = torch.autograd.grad(reward.sum(), log_probs_NV)
        # The mask has probability 0 and log-probability -inf; softmax's backward is 0 there.
        return torch.nan_to_num(gradient, nan=0.0)

    def _reranked_step(
        self,
        run: Run,
        discriminator: RatioNetwork | Reward | CandidateScorer,
        rows: Rows,
        step: int,
        t: Tensor,
        s: Tensor,
    ) -> None:
        canvas = run.canvas
        drawn = run.draw(rows, t, s, step, num_candidates=self.num_candidates)
        if isinstance(discriminator, CandidateScorer):
            run.other_calls += self.num_candidates * discriminator.evaluations
            candidates = [self._candidate_of(run, rows, tokens, step, s) for tokens in drawn.tokens.unbind(1)]
            scores = [discriminator.score_candidate(candidate).float() for candidate in candidates]
        else:
            run.other_calls += self.num_candidates
            scores = [
                self._candidate_scores(canvas, discriminator, rows.index, tokens, s)
                for tokens in drawn.tokens.unbind(1)
            ]
        chosen_B = self._choose(canvas, step, torch.stack(scores, dim=1))
        pick = chosen_B[rows.index // canvas.z.shape[1], None]
        run.write(rows, drawn.tokens.gather(1, pick)[:, 0], drawn.log_probs.gather(1, pick)[:, 0])

    def _candidate_of(self, run: Run, rows: Rows, tokens: Tensor, step: int, s: Tensor) -> Candidate:
        canvas = run.canvas
        mask = {} if canvas.attention_mask is None else {"attention_mask": canvas.attention_mask}
        draw = canvas.uniform(step, STREAM_REMASK)
        z = with_tokens(canvas, rows.index, tokens)
        return Candidate(z, s, rows.index, canvas.movable, draw, {**mask, **run.cond})

    def _candidate_scores(
        self, canvas: Canvas, discriminator: RatioNetwork | Reward, rows: Tensor, tokens: Tensor, s: Tensor
    ) -> Tensor:
        """Reward ``[B]`` of the state in which ``tokens`` stand at flattened positions ``rows``, fp32."""
        candidate = with_tokens(canvas, rows, tokens)
        mask = {} if canvas.attention_mask is None else {"attention_mask": canvas.attention_mask}
        verdict = discriminator(candidate, s, **mask)
        if verdict.shape == candidate.shape[:1]:
            return verdict.float()
        if verdict.shape != candidate.shape:
            raise ValueError(
                f"a discriminator returns logits {list(candidate.shape)}, a reward {list(candidate.shape[:1])}; got "
                f"{list(verdict.shape)}"
            )
        if self.rerank_positions == "masked":
            return self._reward(verdict, self.process.is_masked(candidate, canvas.movable))
        return self._reward(verdict, canvas.movable)

    def _reward(self, logits_BL: Tensor, counted: Tensor) -> Tensor:
        """Reward ``[B]`` of each sequence: minus the logits, averaged or summed over counted positions, fp32."""
        logits_BL = logits_BL.float()
        return -masked_mean(logits_BL, counted) if self.normalize == "mean" else -(logits_BL * counted).sum(1)

    def _choose(self, canvas: Canvas, step: int, scores_BM: Tensor) -> Tensor:
        """Candidate of each sequence, drawn from ``softmax(scale * score)``, int64 ``[B]``."""
        numbers = torch.arange(canvas.batch, device=scores_BM.device) + canvas.first_row
        draw = uniform(canvas.seed, row=numbers, step=step, stream=STREAM_CANDIDATE)
        cumulative = torch.softmax(self.rerank_scale * scores_BM.double(), dim=1).cumsum(1)
        return (draw[:, None] > cumulative).sum(1).clamp(max=self.num_candidates - 1)


class _Plan:
    """Rows of every step, planned from the coins.

    Attributes:
        revealed: what each step reveals, and at last what no step does.
        masked: of each tilted step, all masked rows of the sequences that reveal any: what a tilt depends on.
        places: of each tilted step, where the revealed rows stand among those.
    """

    def __init__(self, run: Run, times: list[float], tilted_steps: int) -> None:
        flags, left = coin_flags(run, times)
        self.revealed = planned_rows([*flags, left])
        still, asked, among = run.canvas.masked(), [], []
        for revealed in flags[:tilted_steps]:
            asked.append(still & revealed.any(1, keepdim=True))
            still = still & ~revealed
        self.masked = planned_rows(asked)
        for masked_rows, rows in zip(self.masked, self.revealed, strict=False):
            among.append(torch.searchsorted(masked_rows.index, rows.index))
        self.places = among


def with_tokens(canvas: Canvas, rows: Tensor, tokens: Tensor) -> Tensor:
    """The state with tokens ``[N]`` at flattened positions; the mask where there was nothing to draw (-1)."""
    tokens = torch.where(tokens < 0, canvas.process.mask_token_id, tokens)
    return canvas.z.flatten().index_copy(0, rows, tokens).view_as(canvas.z)
