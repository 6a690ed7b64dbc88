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
from torch import Generator

from ...checks import check_number
from ...process import MaskedDiffusion
from ..networks import Networks
from .corrupted_data import CorruptedData, log_probs_of
from .data_method import DataMethod, DataMethodConfig
from .output import StepOutput


@dataclass(frozen=True, kw_only=True)
class AlphaLossConfig(DataMethodConfig):
    """Configuration of `AlphaLoss`.

    Args:
        k: sharpness (paper: 8 to 16 on a whole sequence).

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

    def __init__(self, networks: Networks, process: MaskedDiffusion, config: AlphaLossConfig | None = None) -> None:
        super().__init__(networks, process, config if config is not None else AlphaLossConfig())

    def student_loss(self, rollout: CorruptedData, *, generator: Generator | None = None, **given: Any) -> StepOutput:
        """Compute the mean of ``L`` over the sequences with a masked position.

        Args:
            rollout: of this step.
            generator: not read; the other keywords of `loss` neither.
            **given: these keywords.
        """
        positions, (batch, length) = rollout.positions, rollout.x_0.shape
        logits_of = self.student_logits(rollout)
        log_prob_N = log_probs_of(self.process, logits_of, rollout.x_0.flatten()[positions, None])[:, 0]
        total_B = log_prob_N.new_zeros(batch).index_add(0, positions // length, log_prob_N)
        mean_B = total_B / rollout.num_masked.clamp(min=1)
        loss = -torch.expm1(self.config.k * mean_B).sum() / (self.config.k * batch)
        metrics = {"log_prob": mean_B.detach().mean(), "alpha_loss": loss.detach()}
        return StepOutput(loss, metrics)
