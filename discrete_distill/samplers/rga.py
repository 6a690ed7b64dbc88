"""Reward-guided ancestral sampling (RGAS) of DiDi-Instruct, arXiv 2509.25035."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from ..checks import check_choice, check_count, check_number
from ..kernels import STREAM_CANDIDATE, STREAM_REMASK, uniform
from ..models.capabilities import EmbeddingDenoiser, require
from ..models.discriminator import RatioNetwork, masked_mean
from ..process import UnmaskingOrder, check_unmasking_order
from ..process.conditions import call_network, check_keywords
from .grid import walk_grid
from .options import GridOptions
from .positions import Positions
from .ratio_score import Candidate, CandidateScorer
from .state import SamplerState
from .strided import stride_of
from .tilt_plan import TiltGroup, TiltPlan
from .trajectory import Recorder

Reward = Callable[..., Tensor]
"""``reward(x_t, t) -> [B]``, higher is better; passed ``attention_mask`` where there is one."""


@dataclass(frozen=True, kw_only=True)
class RGASampler(GridOptions):
    """Ancestral sampling that a discriminator guides: the first steps tilt the logits, the others re-rank candidates.

    With the reward ``r = -logit`` of the discriminator (student against reference):

    * tilt: tokens are drawn from ``log p(x_i | x_t) + h clip(d r / d log p(x_i | x_t), -1, 1)``, renormalised, where
      the discriminator reads the soft embedding ``softmax(log p) @ E`` at masked positions; ``h`` runs over ``tilt``;
    * re-rank: ``M`` candidates of ``x_s`` from one call of the denoiser, revealing the same positions; one is kept,
      drawn from ``softmax(rerank_scale * score)`` at time ``s``. Since each logit of the discriminator estimates the
      log-ratio of the whole sequence, the *mean* over positions at scale 1 is importance resampling towards the
      reference.

    In place of a discriminator any function ``reward(x_t, t) -> [B]`` re-ranks (it is used as it is: `normalize` and
    `rerank_positions` are for logits of positions), and so does a `CandidateScorer` such as `TeacherRatio`.

    ``M = 1`` with no tilted step is the ancestral sampler, token for token.

    Args:
        reward: a `RatioNetwork`, logits ``[B, L]``; a function, ``[B]``, higher is better; or a `CandidateScorer`.
            Tilting needs an `EmbeddingDenoiser`, such as `Discriminator`.
        num_candidates: ``M`` (paper: 4).
        tilt: ``h`` at the first and last tilted step (paper: 30, 40).
        tilt_fraction: fraction of steps, from the start, that tilt and do not re-rank (paper: 0.5).
        normalize: "mean" or "sum" of scores over positions, in tilting and re-ranking alike.
        rerank_positions: "all" positions, or those still "masked" (which leaves the last step unranked).
        rerank_scale: multiplies the scores before the softmax.
        order: "random" or "strided", as in `AncestralSampler`.

    The other options are those of `GridOptions` and `SamplerOptions`.

    Raises:
        TypeError: if an option has a wrong type, or steps are to be tilted and the reward cannot read embeddings.
        ValueError: if a number is out of range; when called, if the reward is neither ``[B, L]`` nor ``[B]``.

    Examples:
        >>> sampler = RGASampler(process, reward=discriminator, num_steps=4, num_candidates=4)
        >>> out = sampler(student, x_init=x_t, generator=generator)
        >>> out.nfe, out.network_evaluations  # Four steps, in each of which four candidates are scored.
        (4, 20)
    """

    reward: RatioNetwork | Reward | CandidateScorer
    num_candidates: int = 4
    tilt: tuple[float, float] = (30.0, 40.0)
    tilt_fraction: float = 0.0
    normalize: Literal["mean", "sum"] = "mean"
    rerank_positions: Literal["all", "masked"] = "all"
    rerank_scale: float = 1.0
    order: UnmaskingOrder = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unmasking_order(self.order)
        self._check_number_options()
        self._check_reward()

    @property
    def reads_whole_sequences(self) -> bool:
        """True: the reward reads them."""
        return True

    def _check_number_options(self) -> None:
        check_count("num_candidates", self.num_candidates)
        if not isinstance(self.tilt, Sequence) or len(self.tilt) != 2:
            raise TypeError(f"tilt must be two numbers, at the first and the last tilted step, got {self.tilt!r}")
        for strength in self.tilt:
            check_number("tilt", strength)
        check_number("tilt_fraction", self.tilt_fraction, minimum=0.0, maximum=1.0)
        check_choice("normalize", self.normalize, ("mean", "sum"))
        check_choice("rerank_positions", self.rerank_positions, ("all", "masked"))
        check_number("rerank_scale", self.rerank_scale)

    def fill(self, state: SamplerState, recorder: Recorder) -> None:
        self._check_keywords(state)
        plan = TiltPlan(state, self.times, self.tilted_steps, self.chunk_rows, stride_of(self.order, self.times))

        def reverse_step(step: int, t: Tensor, s: Tensor) -> None:
            positions = plan.revealed[step]
            if not positions:
                return
            if step < self.tilted_steps:
                self._tilted_step(state, plan.masked[step], plan.groups[step], step, t, s)
            elif self.num_candidates == 1:
                state.reveal(positions, t, s, step)
            else:
                self._reranked_step(state, positions, step, t, s)

        walk_grid(self, state, reverse_step, recorder, left=plan.revealed[-1])

    def _check_reward(self) -> None:
        if self.tilted_steps:
            require(self.reward, EmbeddingDenoiser, needed_by="tilting through soft embeddings (tilt_fraction > 0)")
        if not isinstance(self.reward, CandidateScorer) and not callable(self.reward):
            raise TypeError(
                "reward is a discriminator, a network of (x_t, t), a function of (x_t, t) or a CandidateScorer, got "
                f"{type(self.reward).__name__}"
            )

    def _check_keywords(self, state: SamplerState) -> None:
        """Refuse a reward that does not take what it will be passed, before anything is drawn."""
        if isinstance(self.reward, CandidateScorer) or not (self.tilted_steps or self.num_candidates > 1):
            return
        embedded = ("inputs_embeds",) if self.tilted_steps else ()
        check_keywords(self.reward, self.reward, (*state.conditions(), *embedded))

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
        state: SamplerState,
        positions: Positions,
        groups: list[TiltGroup],
        step: int,
        t: Tensor,
        s: Tensor,
    ) -> None:
        """Logits of all masked ``positions`` of sequences that reveal any, tilted and drawn group by group."""
        logits_of = state.logits(positions, t, s)
        # A forward pass, and a backward pass that is two.
        state.other_calls += 3
        bad, index, tokens, log_probs = [], [], [], []
        for group in groups:
            logits_NV = logits_of(group.part)
            if state.check:
                state.check_logits(logits_NV, positions.index[group.part], step)
            part = state.part(group.sequences)
            gradient_NV = self.reward_gradient(part, group.compact, logits_NV, t[group.sequences])
            bad.append(~gradient_NV.isfinite().all(1))
            revealed = positions.index[group.part][group.places]
            drawn = state.draw_tokens(
                logits_NV[group.places],
                revealed,
                step,
                tilt=torch.nan_to_num(gradient_NV[group.places], nan=0.0),
                tilt_scale=self.strength(step),
            )
            index.append(revealed)
            tokens.append(drawn.tokens[:, 0])
            log_probs.append(drawn.log_probs[:, 0])
        state.note_scores(state.scatter(positions, torch.cat(bad), False).any(1), step)
        state.write(torch.cat(index), torch.cat(tokens), torch.cat(log_probs))

    def reward_gradient(self, state: SamplerState, positions: Tensor, logits_NV: Tensor, t: Tensor) -> Tensor:
        """``d reward / d log p`` at masked ``positions``, ``[N, V]``, NaN in a sequence whose reward is no number;
        parameters collect no gradient."""
        discriminator = require(self.reward, EmbeddingDenoiser, needed_by="tilting")
        with torch.enable_grad():
            log_probs_NV = self.process.masked_log_probs(logits_NV.detach()).requires_grad_()
            embedding_VD = discriminator.embedding_weight().detach()
            soft_ND = log_probs_NV.softmax(-1).to(embedding_VD.dtype) @ embedding_VD
            hard_BLD = discriminator.embed(state.tokens).detach()
            h_BLD = hard_BLD.flatten(0, 1).index_copy(0, positions, soft_ND.to(hard_BLD.dtype)).view_as(hard_BLD)
            given = {**state.conditions(), "inputs_embeds": h_BLD}
            logits_BL = call_network(discriminator, discriminator, state.tokens, t, model_kwargs=given)
            reward_B = self._reward(logits_BL, state.masked())
            (gradient_NV,) = torch.autograd.grad(reward_B.sum(), log_probs_NV)
        # The mask has probability 0 and log-probability -inf; softmax's backward is 0 there.
        reward_N1 = reward_B.detach()[positions // state.tokens.shape[1], None]
        return torch.where(reward_N1.isfinite(), gradient_NV, torch.nan)

    def _reranked_step(self, state: SamplerState, positions: Positions, step: int, t: Tensor, s: Tensor) -> None:
        drawn = state.draw(positions, t, s, step, num_candidates=self.num_candidates)
        if isinstance(self.reward, CandidateScorer):
            state.other_calls += self.num_candidates * self.reward.evaluations
            candidates = [self._candidate_of(state, positions, tokens, step, s) for tokens in drawn.tokens.unbind(1)]
            scores = [self.reward.score_candidate(candidate).float() for candidate in candidates]
        else:
            state.other_calls += self.num_candidates
            scores = [self._candidate_scores(state, positions.index, tokens, s) for tokens in drawn.tokens.unbind(1)]
        scores_BM = torch.stack(scores, dim=1)
        owner_N = positions.index // state.tokens.shape[1]
        asked_B = torch.zeros_like(state.faults.scores).index_fill(0, owner_N, True)
        state.note_scores(self._weights(scores_BM).isnan().any(1) & asked_B, step)
        pick = self._choose(state, step, scores_BM)[owner_N, None]
        state.write(positions.index, drawn.tokens.gather(1, pick)[:, 0], drawn.log_probs.gather(1, pick)[:, 0])

    def _candidate_of(
        self, state: SamplerState, positions: Positions, tokens: Tensor, step: int, s: Tensor
    ) -> Candidate:
        draw, x_t = state.uniform(step, STREAM_REMASK), state.tokens_with(positions.index, tokens)
        return Candidate(x_t, s, positions.index, state.generation_mask, draw, state.conditions())

    def _candidate_scores(self, state: SamplerState, positions: Tensor, tokens: Tensor, s: Tensor) -> Tensor:
        """Reward ``[B]`` of the state in which ``tokens`` stand at flattened positions ``positions``, fp32."""
        candidate = state.tokens_with(positions, tokens)
        reward = cast("Reward", self.reward)
        log_ratio_output = call_network(reward, reward, candidate, s, model_kwargs=state.conditions())
        if not isinstance(log_ratio_output, Tensor):
            raise TypeError(f"a discriminator or a reward returns a tensor, got {type(log_ratio_output).__name__}")
        if log_ratio_output.shape == candidate.shape[:1]:
            return log_ratio_output.float()
        if log_ratio_output.shape != candidate.shape:
            raise ValueError(
                f"a discriminator returns logits {list(candidate.shape)}, a reward {list(candidate.shape[:1])}; got "
                f"{list(log_ratio_output.shape)}"
            )
        if self.rerank_positions == "masked":
            return self._reward(log_ratio_output, self.process.is_masked(candidate, state.generation_mask))
        return self._reward(log_ratio_output, state.generation_mask)

    def _reward(self, logits_BL: Tensor, loss_mask: Tensor) -> Tensor:
        """Reward ``[B]`` of each sequence: minus the logits, averaged or summed over counted positions, fp32."""
        logits_BL = logits_BL.float()
        return -masked_mean(logits_BL, loss_mask) if self.normalize == "mean" else -(logits_BL * loss_mask).sum(1)

    def _choose(self, state: SamplerState, step: int, scores_BM: Tensor) -> Tensor:
        """Candidate of each sequence, drawn from ``softmax(scale * score)``, int64 ``[B]``."""
        numbers = torch.arange(state.batch, device=scores_BM.device) + state.first_row
        draw = uniform(state.seed, row=numbers, step=step, stream=STREAM_CANDIDATE)
        cumulative = self._weights(scores_BM).cumsum(1)
        return (draw[:, None] > cumulative).sum(1).clamp(max=self.num_candidates - 1)

    def _weights(self, scores_BM: Tensor) -> Tensor:
        """``softmax(scale * score)`` over candidates, fp64 ``[B, M]``; NaN where the scores choose nothing."""
        return torch.softmax(self.rerank_scale * scores_BM.double(), dim=1)
