"""The objective of IDLM (arXiv 2602.19066): a likelihood bound of the teacher less one of an auxiliary denoiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Generator, Tensor

from ...process import MaskedDiffusion
from ..divergence import AuxiliaryDenoiserLogRatio
from ..networks import Networks
from ..rollout import Rollout
from .auxiliary_fit import fit_auxiliary
from .options import AuxiliaryRatio, CorruptionByCount, SequenceCredit, make_estimator
from .output import StepOutput
from .path_config import PathConfig
from .path_method import PathMethod, divisor
from .protocol import UpdatePlan
from .step_check import check_accepts_step


@dataclass(frozen=True, kw_only=True)
class IDLMConfig(PathConfig):
    """Configuration of `IDLM`; `PathConfig` has the other fields.

    Args:
        log_ratio: log-ratio of the auxiliary denoiser and the teacher.
        corruption: corruption in which the two bounds are read.

    Raises:
        TypeError: if a part is of another class.
        ValueError: if a name is unknown.

    Examples:
        >>> config = IDLMConfig.recommended(log_ratio={"updates": 2, "warmup": 1}, corruption={"num_draws": 4})
        >>> config.update_plan().networks(0), config.update_plan().networks(1)
        (('auxiliary', 'auxiliary'), ('student', 'auxiliary', 'auxiliary'))
    """

    log_ratio: AuxiliaryRatio = field(default_factory=AuxiliaryRatio)
    corruption: CorruptionByCount = field(default_factory=lambda: CorruptionByCount(num_draws=2))

    @property
    def auxiliary_step_conditioning(self) -> bool:
        """Whether the auxiliary is passed the last step of its samples' paths."""
        return self.log_ratio.step_conditioning

    def update_plan(self, *, discriminator: bool = False) -> UpdatePlan:
        """The student, then the auxiliary; a discriminator is not trained."""
        updates = {"auxiliary": self.log_ratio.updates}
        return UpdatePlan(order=("student", "auxiliary"), updates=updates, warmup=self.log_ratio.warmup)

    def loss_evaluations(self, batch: int, *, time_conditioning: bool = True) -> tuple[float, float]:
        """Teacher and auxiliary on each corruption, and the updates of the auxiliary."""
        updates = self.log_ratio.updates * batch
        return 2.0 * self.corruption.num_draws * batch + updates, float(updates)


class IDLM(PathMethod[IDLMConfig]):
    """Inverse distillation with an auxiliary denoiser (our implementation of arXiv 2602.19066).

    The reward of a sample ``x_0`` is

        r(x_0) = E[ nelbo_auxiliary(x_0; x_t) - nelbo_teacher(x_0; x_t) ],    x_t ~ q(. | x_0)

    with an auxiliary denoiser that is fitted to the student's samples, and one reward for the whole sequence.

    Our implementation: the gradient is that of the score function along the student's path, with leave-one-out
    baselines, where the paper (arXiv 2602.19066) relaxes the tokens and differentiates the reward.

    Args:
        networks: student, teacher and auxiliary; see `make_networks`.
        process: mask and schedule.
        config: every choice.

    Raises:
        ValueError: if there is no auxiliary denoiser, or a network that is to be passed its step has no true attribute
            ``accepts_step``.

    Examples:
        >>> config = IDLMConfig.recommended(advantages={"group_size": 4})
        >>> method = IDLM(make_networks(teacher, log_ratio="auxiliary"), process, config)
        >>> rollout = method.rollout(8, 16, generator=generator)
        >>> for name in ("student", "auxiliary"):
        ...     method.loss(name, rollout, generator=generator).loss.backward()
    """

    config_class = IDLMConfig
    takes_blocks = True

    def __init__(
        self,
        networks: Networks,
        process: MaskedDiffusion,
        config: IDLMConfig | None = None,
    ) -> None:
        config = config if config is not None else IDLMConfig()
        super().__init__(networks, process, config, estimator=None)
        if self.auxiliary is None:
            raise ValueError("IDLM needs an auxiliary denoiser; see make_networks")
        if config.log_ratio.step_conditioning:
            check_accepts_step(self.auxiliary, "auxiliary", "log_ratio.step_conditioning")
        self.estimator = make_estimator(
            SequenceCredit(corruption=config.corruption),
            process,
            AuxiliaryDenoiserLogRatio(process, self.auxiliary, self.teacher),
            paths=config.paths,
            advantages=config.advantages,
        )

    def auxiliary_loss(
        self, rollout: Rollout, *, generator: Generator | None = None, num_tokens: Tensor | float | None = None
    ) -> StepOutput:
        """Fit the auxiliary denoiser to the student's samples; see `fit_auxiliary`.

        Args:
            rollout: of this step.
            generator: source of randomness.
            num_tokens: see `student_loss`.
        """
        assert self.auxiliary is not None
        tokens = divisor(rollout, num_tokens)
        return fit_auxiliary(self.auxiliary, self.process, rollout, num_tokens=tokens, generator=generator)

    def _ratio_loss(self, name: str, rollout: Rollout, reference: Tensor | None, **given: Any) -> StepOutput:
        return self.auxiliary_loss(rollout, **given)
