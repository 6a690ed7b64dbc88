r"""The alpha loss (arXiv 2609.38066): a likelihood that prefers sequences which are likely as a whole.

Of data with masked positions ``S``, with ``p`` the student's prediction in one pass,

.. math:: s = \frac{1}{|S|} \sum_{i \in S} \log p_i(x_i), \qquad L = \frac{1 - \exp(k s)}{k}.

As ``k`` goes to 0, ``L`` is ``-s``, the negative log-likelihood; the larger ``k`` is, the more a sequence counts that
the student can already give in one pass. Where the data at ``S`` have the distribution ``q``, the best factorised
prediction is the fixed point

.. math:: p_i(v) \propto E_q\big[ 1[x_i = v] \textstyle\prod_j p_j(x_j)^{k / |S|} \big],

which for independent positions is ``p_i ~ q_i^{1 / (1 - k / |S|)}``, sharper than the data, for ``k < |S|``. There is
no teacher: the student starts as a trained model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...checks import check_number
from ...distributed.collectives import mean_over_processes
from ...process import MaskedDiffusion
from ...process.blocks import BlockRows
from ..networks import Networks
from .corrupted_data import CorruptedData, PartedData, log_probs_of
from .data_method import DataMethod, DataMethodConfig
from .output import StepOutput


@dataclass(frozen=True, kw_only=True)
class AlphaLossConfig(DataMethodConfig):
    """Configuration of `AlphaLoss`.

    Args:
        k: sharpness (paper: 8 to 16 on a whole sequence, 0.4 to 0.8 for each token of a block).

    Raises:
        ValueError: if it is not positive.

    Examples:
        >>> method = AlphaLoss(networks, process, AlphaLossConfig(k=1.0))
        >>> rollout = method.rollout(reference=data, generator=generator)
        >>> method.loss("student", rollout).loss.item()  # (1 - exp(-k log(8))) / k
        0.875...
    """

    k: float = 8.0

    def __post_init__(self) -> None:
        check_number("k", self.k, minimum=1e-6)


class AlphaLoss(DataMethod[AlphaLossConfig]):
    """Train a trained model further by the alpha loss, for sampling in few passes. The teacher is not read.

    Every sequence counts equally, however many positions of it are masked; there is no weight ``1 / t``.

    Args:
        networks: the student; see `make_networks`.
        process: mask and schedule.
        config: every choice.

    Examples:
        >>> method = AlphaLoss(make_networks(teacher, log_ratio=None, step_conditioning=False), process)
        >>> rollout = method.rollout(reference=data, generator=generator)
        >>> method.loss("student", rollout).loss.backward()
    """

    config_class = AlphaLossConfig
    takes_blocks = True
    reads_teacher = False

    def __init__(self, networks: Networks, process: MaskedDiffusion, config: AlphaLossConfig | None = None) -> None:
        super().__init__(networks, process, config if config is not None else AlphaLossConfig())

    def corrupt(self, x_0: Tensor, **given: Any) -> PartedData:
        """See `DataMethod.corrupt`."""
        rollout: Any = super().corrupt(x_0, **given)
        return PartedData(**vars(rollout), num_parts=(self.masks_of_parts(rollout)[1] > 0).sum())

    def student_loss(
        self, rollout: CorruptedData, *, num_tokens: Tensor | float | None = None, **given: Any
    ) -> StepOutput:
        """Compute the mean of ``L`` over the sequences with a masked position; of a student that reads by blocks, over
        the blocks with one, each with a mean of its own.

        Args:
            rollout: of this step.
            num_tokens: what the sum of ``L`` is divided by: sequences or blocks with a mask of the whole batch, where
                the rollout is a part of it, as a mean over processes.
            **given: the other keywords of `loss`; not read.
        """
        positions = rollout.positions
        logits_of = self.student_logits(rollout)
        log_prob_N = log_probs_of(self.process, logits_of, rollout.x_0.flatten()[positions, None])[:, 0]
        part_N, count_P = self.masks_of_parts(rollout)
        mean_P = log_prob_N.new_zeros(len(count_P)).index_add(0, part_N, log_prob_N) / count_P.clamp(min=1)
        if num_tokens is None:
            num_tokens = mean_over_processes((count_P > 0).sum().float()).clamp(min=1.0)
        loss = -torch.expm1(self.config.k * mean_P).sum() / (self.config.k * num_tokens)
        metrics = {"log_prob": mean_P.detach().sum() / num_tokens, "alpha_loss": loss.detach()}
        return StepOutput(loss, metrics)

    def masks_of_parts(self, rollout: CorruptedData) -> tuple[Tensor, Tensor]:
        """The sequence or block of each masked position, int64 ``[N]``, and how many masks each has, ``[P]``."""
        positions, (batch, length) = rollout.positions, rollout.x_0.shape
        layout = BlockRows(rollout.x_0, rollout.attention_mask, self.block_length or length)
        part_N = positions // length * layout.num_blocks + layout.number.flatten()[positions]
        return part_N, torch.bincount(part_N, minlength=batch * layout.num_blocks)
