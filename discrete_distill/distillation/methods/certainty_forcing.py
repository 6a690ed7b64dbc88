r"""Certainty-forcing distillation (dParallel, arXiv 2509.26488): a student that is sure of what its teacher decodes.

Of a sequence that the teacher decoded, one block is active: the blocks before it are given, those behind it are masked,
and of its own positions a part ``S`` is masked, at random or along the teacher's own order. At ``S``, with ``p`` the
student's answer and ``x`` the teacher's token,

.. math:: L = \frac{1}{|S|} \sum_{i \in S} -\log p_i(x_i)
          + \beta \frac{1}{|C|} \sum_{i \in C} H\big(p_i^{1 / T}\big), \qquad C = \{i \in S: \arg\max p_i = x_i\}:

where the student is already right, its entropy (at temperature ``T``) goes down, so that a sampler that commits what is
certain commits more at once. This is a bias by design: where the teacher is not deterministic, the less frequent of its
tokens are lost.

Shape suffixes: B batch, L length, V vocabulary, N masked positions, C states of a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...checks import check_number
from ...process import MaskedDiffusion
from ...process.conditions import take_rows
from ..networks import Networks
from .block_states import BlockHalves, TrajectoryStates
from .corrupted_data import CorruptedData, chunks_of
from .data_method import DataMethod, DataMethodConfig
from .options.fields import check_fields
from .output import StepOutput


@dataclass(frozen=True, kw_only=True)
class CertaintyForcingConfig(DataMethodConfig):
    """Configuration of `CertaintyForcing`.

    Args:
        corruption: what is masked: complementary random halves of a block (`BlockHalves`, dParallel), or what the
            teacher revealed last (`TrajectoryStates`, d3LLM), which needs rows of a `TrajectoryStore`.
        entropy_weight: ``beta`` (paper: 2).
        entropy_temperature: ``T`` (paper: 0.5).
        reference: what is learned: the "teacher"'s own samples (paper), or "data".

    Raises:
        TypeError: if the corruption is of another class.
        ValueError: if a number is out of range.

    Examples:
        >>> config = CertaintyForcingConfig(corruption=BlockHalves(block_length=8, mask_ratio=0.25))
        >>> config.reference, config.path_evaluations(8)  # Two states of each sequence.
        ('teacher', (1.0, 16.0, 16.0))
    """

    corruption: BlockHalves | TrajectoryStates = field(default_factory=BlockHalves)
    entropy_weight: float = 2.0
    entropy_temperature: float = 0.5
    reference: Literal["data", "teacher"] = "teacher"

    def __post_init__(self) -> None:
        check_fields(self)
        check_number("entropy_weight", self.entropy_weight, minimum=0.0)
        check_number("entropy_temperature", self.entropy_temperature, exclusive_minimum=0.0)

    def path_evaluations(self, batch: int, *, time_conditioning: bool = True) -> tuple[float, float, float]:
        """The states of each sequence."""
        states = float(self.corruption.num_states * batch)
        return 1.0, states, states


class CertaintyForcing(DataMethod[CertaintyForcingConfig]):
    """Certainty-forcing distillation: the teacher's tokens, and no entropy where the student has them already.

    A rollout has all states of the sequences, first the first one of each. The teacher itself is not read: its samples
    come as the reference, tokens or `Trajectories`.

    Args:
        networks: the student; see `make_networks`.
        process: mask and schedule.
        config: every choice.

    Examples:
        >>> config = CertaintyForcingConfig(corruption=BlockHalves(block_length=8))
        >>> method = CertaintyForcing(make_networks(teacher, log_ratio=None, step_conditioning=False), process, config)
        >>> samples = AncestralSampler(process, num_steps=16)(teacher, shape=(8, 16), generator=generator).sequences
        >>> rollout = method.rollout(reference=samples, generator=generator)
        >>> method.loss("student", rollout).loss.backward()
    """

    config_class = CertaintyForcingConfig
    takes_blocks = True
    reads_teacher = False

    def __init__(
        self, networks: Networks, process: MaskedDiffusion, config: CertaintyForcingConfig | None = None
    ) -> None:
        super().__init__(networks, process, config if config is not None else CertaintyForcingConfig())
        self.progress = 0.0

    def begin_step(self, step: int, num_steps: int, *, average: nn.Module | None = None) -> None:
        """Note how far the training is, which sets blocks and masks of `TrajectoryStates`."""
        self.progress = min(step / max(num_steps - 1, 1), 1.0)

    def corrupt(
        self,
        x_0: Tensor,
        *,
        generation_mask: Tensor | None,
        attention_mask: Tensor | None,
        generator: Generator | None,
        model_kwargs: Mapping[str, Any] | None,
        reveal_step: Tensor | None = None,
    ) -> CorruptedData:
        """States of each sequence, in which a part of one block is masked, and all blocks behind it."""
        batch, _ = x_0.shape
        free = torch.ones_like(x_0, dtype=torch.bool) if generation_mask is None else generation_mask
        masked_CBL, behind = self.config.corruption.masks(
            free, reveal_step=reveal_step, progress=self.progress, generator=generator
        )
        states = len(masked_CBL)
        loss_mask = masked_CBL.flatten(0, 1)
        hidden = loss_mask | behind.repeat(states, 1)
        t = self.process.time_of_count(hidden.sum(1), free.sum(1).repeat(states))
        rows = torch.arange(batch, device=x_0.device).repeat(states)
        x_0, kwargs = x_0[rows], take_rows(model_kwargs or {}, rows, batch)
        x_t = x_0.masked_fill(hidden, self.process.mask_token_id)
        return CorruptedData(x_t, t, loss_mask, None if attention_mask is None else attention_mask[rows], kwargs, x_0)

    def student_loss(
        self, rollout: CorruptedData, *, num_tokens: Tensor | float | None = None, **given: Any
    ) -> StepOutput:
        """Compute cross-entropy and entropy, each a mean: of the masked positions, and of those that are right.

        Args:
            rollout: of this step.
            num_tokens: masked positions of the whole batch, where the rollout is a part of it: the cross-entropy is
                divided by them, and the entropy, a mean over the right ones of this part, weighs as much as the part's
                share of them.
            **given: the other keywords of `loss`; not read.
        """
        positions = rollout.positions
        logits_of = self.student_logits(rollout)
        target_N = rollout.x_0.flatten()[positions]

        def part(rows: slice) -> Tensor:
            logits_nV = self.process.masked_log_probs(logits_of(rows))
            sharp_nV = (logits_nV / self.config.entropy_temperature).log_softmax(-1)
            entropy_n = -(sharp_nV.exp() * sharp_nV.clamp_min(-1e4)).sum(-1)
            right_n = logits_nV.argmax(-1) == target_N[rows]
            return torch.stack((-logits_nV.gather(1, target_N[rows, None])[:, 0], entropy_n * right_n, right_n * 1.0))

        parts = [checkpoint(part, rows, use_reentrant=False).sum(1) for rows in chunks_of(len(positions))]
        sums = torch.stack(parts).sum(0)
        count = rollout.num_tokens() if num_tokens is None else num_tokens
        cross_entropy, entropy = sums[0] / count, sums[1] / sums[2].detach().clamp(min=1.0)
        loss = cross_entropy + self.config.entropy_weight * (rollout.num_counted() / count) * entropy
        metrics = {
            "cross_entropy": cross_entropy.detach(),
            "entropy_where_right": entropy.detach(),
            "right": sums[2].detach() / max(len(positions), 1),
        }
        return StepOutput(loss, metrics)
