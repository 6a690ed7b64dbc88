r"""Distillation by a maximum mean discrepancy in the features of a frozen network (arXiv 2610.06648).

Paired with data: of a sequence ``x_0`` the positions ``S``, ``n`` of them, are masked; the student predicts once, and
from that prediction ``p`` come ``G`` candidates of ``B`` fills each. With ``f`` the features of the frozen network at
the filled sequence and ``k(a, b) = exp(-|a - b|^2 / (2 h^2))``, the reward of a candidate is

.. math:: R_g = \frac{2}{B n^2} \sum_b \sum_{i, j \in S} k(f(x_0)_i, f(x_{gb})_j)
          - \frac{1}{B (B - 1) n (n - 1)} \sum_{b \ne b'} \sum_{i \ne j \in S} k(f(x_{gb})_i, f(x_{gb'})_j),

an unbiased estimate of ``-MMD^2`` up to the term of the data alone. Its gradient is that of the score function with the
other candidates as baseline, ``A_g = R_g - mean_{g' != g} R_{g'}``:

.. math:: L = - \sum_g A_g \sum_b \sum_{i \in S} \log p_i(x_{gb, i}) / (n G B).

Shape suffixes: B batch, L length, D width of features, N masked positions, n those of one sequence, G candidates,
F fills of a candidate, M = G F fills of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ... import draws
from ...checks import check_all_counts
from ...distributed.collectives import mean_over_processes
from ...kernels import sample_rows
from ...models import HiddenStatesDenoiser
from ...models.capabilities import require
from ...process import MaskedDiffusion
from ...process.conditions import take_rows
from ...process.denoiser import LogitsOfPart
from ..divergence.mmd import check_bandwidth, median_bandwidth, rbf_kernel
from ..networks import Networks
from ..rewards import group_advantages
from .corrupted_data import CorruptedData, PartedData, chunks_of, log_probs_of
from .data_method import DataMethod, DataMethodConfig
from .mmd import FeatureNetwork, FrozenFeatures
from .output import StepOutput


@dataclass(frozen=True, kw_only=True)
class FeatureMMDConfig(DataMethodConfig):
    """Configuration of `FeatureMMD`.

    Args:
        candidates: ``G``, compared with each other (paper: 4).
        fills: ``B`` of each candidate (paper: 2).
        bandwidth: ``h`` of the kernel; the median distance between features of the data if None (paper: 158, which
            is ``alpha = 2e-5`` of ``exp(-alpha d^2)``, in the features of its teacher).
        scaled_advantages: divide advantages by their standard deviation over the batch, so that the learning rate does
            not depend on the kernel (paper: no).

    Raises:
        ValueError: if a number is out of range.

    Examples:
        >>> config = FeatureMMDConfig(candidates=4, fills=2)
        >>> config.loss_evaluations(8)  # Features of 8 sequences of data and of 8 * 4 * 2 fills; no backward pass.
        (72.0, 0.0)
    """

    candidates: int = 4
    fills: int = 2
    bandwidth: float | None = None
    scaled_advantages: bool = False

    def __post_init__(self) -> None:
        check_all_counts(self, "candidates", "fills")
        for name in ("candidates", "fills"):
            if getattr(self, name) < 2:
                raise ValueError(
                    f"{name} is {getattr(self, name)}: one has nothing to be compared with; give 2 or more"
                )
        if self.bandwidth is not None:
            check_bandwidth(self.bandwidth)

    def loss_evaluations(self, batch: int, *, time_conditioning: bool = True) -> tuple[float, float]:
        """Features of data and of all fills; a whole pass each, though the network is left at an early block."""
        return float(batch * (1 + self.candidates * self.fills)), 0.0


class FeatureMMD(DataMethod[FeatureMMDConfig]):
    """The feature-space MMD, paired with data: no path, no auxiliary network, one pass of the student.

    Args:
        networks: student and teacher; see `make_networks`.
        process: mask and schedule.
        config: every choice.
        features: ``features(x_0, t) -> [B, L, D]`` of clean tokens, frozen; by default the teacher's hidden states
            after a quarter of its blocks (paper: block 3 of 12), as they are.

    Raises:
        TypeError: if no features are given and the teacher does not offer its hidden states.

    Examples:
        >>> method = FeatureMMD(make_networks(teacher, log_ratio=None, step_conditioning=False), process)
        >>> rollout = method.rollout(reference=data, generator=generator)
        >>> method.loss("student", rollout, generator=generator).loss.backward()
    """

    config_class = FeatureMMDConfig
    takes_blocks = True
    reads_teacher = False
    minimum_masks = 2

    def __init__(
        self,
        networks: Networks,
        process: MaskedDiffusion,
        config: FeatureMMDConfig | None = None,
        *,
        features: FeatureNetwork | None = None,
    ) -> None:
        super().__init__(networks, process, config if config is not None else FeatureMMDConfig())
        if features is None:
            teacher = require(networks.teacher, HiddenStatesDenoiser, needed_by="a comparison of features")
            features = FrozenFeatures(teacher, block=(len(teacher.blocks) - 1) // 4, normalize=False)
        self.features = features

    def corrupt(self, x_0: Tensor, **given: Any) -> PartedData:
        """See `DataMethod.corrupt`."""
        rollout: Any = super().corrupt(x_0, **given)
        return PartedData(**vars(rollout), num_parts=(rollout.num_masked >= self.minimum_masks).sum())

    def student_loss(
        self,
        rollout: CorruptedData,
        *,
        generator: Generator | None = None,
        num_tokens: Tensor | float | None = None,
        **given: Any,
    ) -> StepOutput:
        """Compute the score-function loss; its gradient is that of ``MMD^2`` in expectation, mean over the sequences
        with two masks or more.

        A bandwidth by the median, and scaled advantages, are those of the rollout alone.

        Args:
            rollout: of this step.
            generator: draws the fills.
            num_tokens: what sums over these sequences are divided by: those of the whole batch where the rollout is a
                part of it, as a mean over processes.
            **given: the other keywords of `loss`; not read.
        """
        positions, length = rollout.positions, rollout.x_0.shape[1]
        counted_B = rollout.num_masked >= self.minimum_masks
        if num_tokens is None:
            num_tokens = mean_over_processes(counted_B.sum().float()).clamp(min=1.0)
        logits_of = self.student_logits(rollout)
        fills_NM = self.draw_fills(logits_of, positions, generator)
        rewards_BG = self.rewards(rollout, fills_NM)
        advantages_BG = group_advantages(
            rewards_BG.flatten(), self.config.candidates, baseline="leave_one_out", scale="none"
        ).view_as(rewards_BG)
        if self.config.scaled_advantages:
            counted = counted_B.sum().clamp(min=1) * self.config.candidates
            advantages_BG = advantages_BG / (advantages_BG.square().sum() / counted).sqrt().clamp(min=1e-12)
        row_N = positions // length
        weight_BG = advantages_BG / (rollout.num_masked.clamp(min=1)[:, None] * fills_NM.shape[1] * num_tokens)
        log_prob_NM = log_probs_of(self.process, logits_of, fills_NM)
        loss = -(weight_BG.repeat_interleave(self.config.fills, 1)[row_N] * log_prob_NM).sum()
        metrics = {
            "reward": (rewards_BG.mean(1) * counted_B).sum() / counted_B.sum().clamp(min=1),
            "reward_spread": (rewards_BG.std(1) * counted_B).sum() / counted_B.sum().clamp(min=1),
            "log_prob": log_prob_NM.detach().mean() if len(log_prob_NM) else rewards_BG.new_zeros(()),
        }
        return StepOutput(loss, metrics)

    @torch.no_grad()
    def draw_fills(self, logits_of: LogitsOfPart, positions: Tensor, generator: Generator | None) -> Tensor:
        """Draw all fills of all masked positions from one prediction, int64 ``[N, M]``; fill ``m`` belongs to candidate
        ``m // F``."""
        seed = draws.seed(device=positions.device, generator=generator)
        tokens = [
            sample_rows(
                self.process.forbid(logits_of(rows)),
                seed=seed,
                positions_R=positions[rows],
                step=0,
                num_candidates=self.config.candidates * self.config.fills,
                mask_token_id=self.process.mask_token_id,
            ).tokens
            for rows in chunks_of(len(positions))
        ]
        return torch.cat(tokens)

    @torch.no_grad()
    def rewards(self, rollout: CorruptedData, fills_NM: Tensor) -> Tensor:
        """``R_g`` of every sequence, fp32 ``[B, G]``; 0 for a sequence with fewer than two masks. Kernels are held for
        one sequence at a time.

        Args:
            rollout: of this step.
            fills_NM: int64 ``[N, M]``.
        """
        x_0, mask_BL = rollout.x_0, rollout.loss_mask
        given = rollout.denoiser_kwargs()
        if self.block_length:  # Features are of clean sequences as a whole.
            del given["clean"]
        data_BLD = self._features(x_0, given)
        bandwidth = self.config.bandwidth
        h = (
            median_bandwidth(data_BLD[mask_BL])
            if bandwidth is None and bool(mask_BL.any())
            else data_BLD.new_tensor(1.0 if bandwidth is None else bandwidth)
        )
        counts = rollout.num_masked.tolist()
        rewards, start = [], 0
        for row, count in enumerate(counts):
            fills_nM = fills_NM[start : start + count]
            start += count
            if count < 2:
                rewards.append(data_BLD.new_zeros(self.config.candidates))
                continue
            filled_ML = x_0[row].repeat(fills_nM.shape[1], 1)
            filled_ML[:, mask_BL[row]] = fills_nM.T
            of_row = torch.full((len(filled_ML),), row, device=x_0.device)
            features_MLD = self._features(filled_ML, take_rows(given, of_row, len(x_0)))
            rewards.append(self._reward(data_BLD[row, mask_BL[row]], features_MLD[:, mask_BL[row]], h))
        return torch.stack(rewards).float()

    def _features(self, x_0: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        given: dict[str, Any] = {"model_kwargs": model_kwargs} if model_kwargs else {}
        return self.features(x_0, torch.zeros(len(x_0), device=x_0.device), **given)

    def _reward(self, data_nD: Tensor, fills_MnD: Tensor, h: Tensor) -> Tensor:
        fills, count = self.config.fills, len(data_nD)
        rewards = []
        for candidate in fills_MnD.split(fills):
            near_data = rbf_kernel(data_nD, candidate.flatten(0, 1), h).sum() * 2.0 / (fills * count**2)
            among = data_nD.new_zeros(())
            for first in range(fills):
                for second in range(first):
                    kernel_nn = rbf_kernel(candidate[first], candidate[second], h)
                    among = among + 2.0 * (kernel_nn.sum() - kernel_nn.trace())
            rewards.append(near_data - among / (fills * (fills - 1) * count * (count - 1)))
        return torch.stack(rewards)
