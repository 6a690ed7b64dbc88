"""Reward-guided ancestral sampling (RGAS) of DiDi-Instruct, arXiv 2509.25035."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from ..canvas import Canvas, take_rows
from ..checks import check_choice, check_count, check_number
from ..kernels import STREAM_CANDIDATE, STREAM_REMASK, uniform
from ..models.discriminator import Discriminator, RatioNetwork, masked_mean
from ..process import Denoiser
from ..process.conditions import call_network, check_keywords
from .grid import walk_grid
from .options import GridOptions
from .output import SamplerOutput
from .ratio_score import Candidate, CandidateScorer
from .rows import Rows
from .run import Run, conditions_of
from .tilt_plan import TiltGroup, TiltPlan
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
        TypeError: if an option has a wrong type.
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
        check_count("num_candidates", self.num_candidates)
        if not isinstance(self.tilt, Sequence) or len(self.tilt) != 2:
            raise TypeError(f"tilt must be two numbers, at the first and the last tilted step, got {self.tilt!r}")
        for strength in self.tilt:
            check_number("tilt", strength)
        check_number("tilt_fraction", self.tilt_fraction, least=0.0, most=1.0)
        check_choice("normalize", self.normalize, ("mean", "sum"))
        check_choice("rerank_positions", self.rerank_positions, ("all", "masked"))
        check_number("rerank_scale", self.rerank_scale)

    @torch.no_grad()
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
        return self.fill(run, discriminator, return_history=return_history, callback=callback)

    def fill(
        self,
        run: Run,
        discriminator: RatioNetwork | Reward | CandidateScorer,
        *,
        return_history: bool,
        callback: StepCallback | None,
    ) -> SamplerOutput:
        """Fill in the canvas of ``run``."""
        self._check_discriminator(run, discriminator)
        plan = TiltPlan(run, self.times, self.tilted_steps, self.chunk_rows)

        def reverse_step(step: int, t: Tensor, s: Tensor) -> None:
            rows = plan.revealed[step]
            if not rows:
                return
            if step < self.tilted_steps:
                assert isinstance(discriminator, Discriminator)
                self._tilted_step(run, discriminator, plan.masked[step], plan.groups[step], step, t, s)
            elif self.num_candidates == 1:
                run.reveal(rows, t, s, step)
            else:
                self._reranked_step(run, discriminator, rows, step, t, s)

        return walk_grid(
            self, run, reverse_step, return_history=return_history, callback=callback, left=plan.revealed[-1]
        )

    def _check_discriminator(self, run: Run, discriminator: RatioNetwork | Reward | CandidateScorer) -> None:
        """Refuse one that cannot do what it will be asked for, before anything is drawn."""
        if self.tilted_steps and not isinstance(discriminator, Discriminator):
            raise TypeError(
                "tilting differentiates through soft embeddings and needs a discrete_distill Discriminator, got "
                f"{type(discriminator).__name__}; set tilt_fraction=0 to re-rank only"
            )
        if isinstance(discriminator, CandidateScorer) or not (self.tilted_steps or self.num_candidates > 1):
            return
        if not callable(discriminator):
            raise TypeError(
                "a discriminator is a network of (z, t), a reward of (z, t) or a CandidateScorer, got "
                f"{type(discriminator).__name__}"
            )
        conditions = run.conditions()
        if isinstance(discriminator, Discriminator):
            check_keywords(discriminator, discriminator.from_embeddings, conditions)
        check_keywords(discriminator, discriminator, conditions)

    @property
    def tilted_steps(self) -> int:
        """How many of the first steps tilt."""
        return round(self.tilt_fraction * (len(self.times) - 1))

    def strength(self, step: int) -> float:
        """``h`` of a tilted step, linear from the first to the last of them."""
        first, last = self.tilt
        return first + (last - first) * step / max(self.tilted_steps - 1, 1)

    def _tilted_step(
        self,
        run: Run,
        discriminator: Discriminator,
        rows: Rows,
        groups: list[TiltGroup],
        step: int,
        t: Tensor,
        s: Tensor,
    ) -> None:
        """Logits of all masked ``rows`` of sequences that reveal any, tilted and drawn group by group."""
        canvas = run.canvas
        logits_of = run.logits(rows, t, s)
        # A forward pass, and a backward pass that is two.
        run.other_calls += 3
        bad, index, tokens, log_probs = [], [], [], []
        for group in groups:
            logits_NV = logits_of(group.part)
            if run.check:
                run.check_logits(logits_NV, rows.index[group.part], None, step)
            cond = {name: take_rows(value, group.sequences, canvas.batch) for name, value in run.cond.items()}
            gradient_NV = self.reward_gradient(
                canvas.part(group.sequences), discriminator, group.compact, logits_NV, t[group.sequences], **cond
            )
            bad.append(~gradient_NV.isfinite().all(1))
            revealed = rows.index[group.part][group.places]
            drawn = run.law.draw(
                logits_NV[group.places],
                seed=canvas.seed,
                rows=canvas.row_numbers[revealed],
                step=step,
                tilt=torch.nan_to_num(gradient_NV[group.places], nan=0.0),
                tilt_scale=self.strength(step),
            )
            index.append(revealed)
            tokens.append(drawn.tokens[:, 0])
            log_probs.append(drawn.log_probs[:, 0])
        run.note_bad_scores(run.on_canvas(rows, torch.cat(bad), False).any(1), step)
        at = torch.cat(index)
        run.write(Rows(at, None, at), torch.cat(tokens), torch.cat(log_probs))

    def reward_gradient(
        self, canvas: Canvas, discriminator: Discriminator, rows: Tensor, logits_NV: Tensor, t: Tensor, **cond: Any
    ) -> Tensor:
        """``d reward / d log p`` at masked positions ``rows``, ``[N, V]``, NaN in a sequence whose reward is no number;
        parameters collect no gradient."""
        with torch.enable_grad():
            log_probs_NV = self.process.masked_log_probs(logits_NV.detach()).requires_grad_()
            embedding_VD = discriminator.embedding_weight().detach()
            soft_ND = log_probs_NV.softmax(-1).to(embedding_VD.dtype) @ embedding_VD
            hard_BLD = discriminator.backbone.embed(canvas.z).detach()
            h_BLD = hard_BLD.flatten(0, 1).index_copy(0, rows, soft_ND.to(hard_BLD.dtype)).view_as(hard_BLD)
            logits_BL = call_network(
                discriminator, discriminator.from_embeddings, h_BLD, t, cond=conditions_of(canvas, cond)
            )
            reward_B = self._reward(logits_BL, canvas.masked())
            (gradient_NV,) = torch.autograd.grad(reward_B.sum(), log_probs_NV)
        # The mask has probability 0 and log-probability -inf; softmax's backward is 0 there.
        reward_N1 = reward_B.detach()[rows // canvas.z.shape[1], None]
        return torch.where(reward_N1.isfinite(), gradient_NV, torch.nan)

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
                self._candidate_scores(canvas, discriminator, rows.index, tokens, s, run.cond)
                for tokens in drawn.tokens.unbind(1)
            ]
        scores_BM = torch.stack(scores, dim=1)
        asked_B = torch.zeros_like(run.bad_scores).index_fill(0, rows.index // canvas.z.shape[1], True)
        run.note_bad_scores(self._weights(scores_BM).isnan().any(1) & asked_B, step)
        chosen_B = self._choose(canvas, step, scores_BM)
        pick = chosen_B[rows.index // canvas.z.shape[1], None]
        run.write(rows, drawn.tokens.gather(1, pick)[:, 0], drawn.log_probs.gather(1, pick)[:, 0])

    def _candidate_of(self, run: Run, rows: Rows, tokens: Tensor, step: int, s: Tensor) -> Candidate:
        canvas = run.canvas
        draw = canvas.uniform(step, STREAM_REMASK)
        z = with_tokens(canvas, rows.index, tokens)
        return Candidate(z, s, rows.index, canvas.movable, draw, run.conditions())

    def _candidate_scores(
        self,
        canvas: Canvas,
        discriminator: RatioNetwork | Reward,
        rows: Tensor,
        tokens: Tensor,
        s: Tensor,
        cond: Mapping[str, Any],
    ) -> Tensor:
        """Reward ``[B]`` of the state in which ``tokens`` stand at flattened positions ``rows``, fp32."""
        candidate = with_tokens(canvas, rows, tokens)
        verdict = call_network(discriminator, discriminator, candidate, s, cond=conditions_of(canvas, cond))
        if not isinstance(verdict, Tensor):
            raise TypeError(f"a discriminator or a reward returns a tensor, got {type(verdict).__name__}")
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
        cumulative = self._weights(scores_BM).cumsum(1)
        return (draw[:, None] > cumulative).sum(1).clamp(max=self.num_candidates - 1)

    def _weights(self, scores_BM: Tensor) -> Tensor:
        """``softmax(scale * score)`` over candidates, fp64 ``[B, M]``; NaN where the scores choose nothing."""
        return torch.softmax(self.rerank_scale * scores_BM.double(), dim=1)


def with_tokens(canvas: Canvas, rows: Tensor, tokens: Tensor) -> Tensor:
    """The state with tokens ``[N]`` at flattened positions; the mask where there was nothing to draw (-1)."""
    tokens = torch.where(tokens < 0, canvas.process.mask_token_id, tokens)
    return canvas.z.flatten().index_copy(0, rows, tokens).view_as(canvas.z)
