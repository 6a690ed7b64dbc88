"""Configuration of DiDi-Instruct, with the paper's preset."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...checks import check_number
from .options import (
    Advantages,
    AutoregressiveRatio,
    AuxiliaryRatio,
    CorruptionByParts,
    CorruptionByTime,
    DataKL,
    DiscriminatorRatio,
    PathKL,
    PathRatio,
    Paths,
    Regularization,
    SequenceCredit,
    TokenCredit,
    VocabularyCredit,
    with_changes,
)
from .path_config import PathConfig
from .protocol import UpdatePlan


@dataclass(frozen=True, kw_only=True)
class DiDiInstructConfig(PathConfig):
    """Configuration of DiDi-Instruct.

    The defaults are the published method (arXiv 2509.25035); `recommended` is what this library's own runs favour.

    Args:
        paths: paths of the student.
        advantages: normalisation of the rewards of their samples.
        log_ratio: estimator of log q_student / q_teacher.
        credit: what an advantage belongs to: the sequence, a token, or the whole vocabulary at every step.
        regularization: terms of the student's loss beside the surrogate.
        reward_clip: maximum size of a raw log-ratio, nats.
        reference: where reference sequences come from: "data" (the authors' code) or "teacher" samples (their
            Algorithm 1).

    Raises:
        TypeError: if a part is of another class.
        ValueError: if a number is out of range or two parts do not go together.

    Examples:
        >>> config = DiDiInstructConfig.recommended(paths={"num_steps": (4,)}, advantages={"group_size": 8})
        >>> config.paths.num_steps, config.credit.window
        ((4,), 6)
    """

    paths: Paths = field(default_factory=Paths)
    advantages: Advantages = field(default_factory=Advantages)
    log_ratio: DiscriminatorRatio | AuxiliaryRatio | AutoregressiveRatio | PathRatio = field(
        default_factory=DiscriminatorRatio
    )
    credit: SequenceCredit | TokenCredit | VocabularyCredit = field(default_factory=SequenceCredit)
    regularization: Regularization = field(
        default_factory=lambda: Regularization(path_kl=PathKL(coefficient=0.02), entropy_coefficient=5e-4)
    )
    reward_clip: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("reward_clip", self.reward_clip, exclusive_minimum=0.0, finite=False)
        if isinstance(self.log_ratio, AutoregressiveRatio):
            corruption = getattr(self.credit, "corruption", None)
            if corruption != CorruptionByParts(num_parts=1):
                raise ValueError(
                    "an AutoregressiveRatio reads whole samples: credit.corruption must be "
                    f"CorruptionByParts(num_parts=1), got {corruption or self.credit}"
                )
        if isinstance(self.credit, VocabularyCredit):
            if isinstance(self.log_ratio, DiscriminatorRatio):
                raise ValueError(
                    "a discriminator scores samples, not the vocabulary: with a VocabularyCredit, log_ratio must be an "
                    f"AuxiliaryRatio or a PathRatio, got {self.log_ratio}"
                )
        elif isinstance(self.log_ratio, PathRatio):
            raise ValueError(f"a PathRatio scores no sample: credit must be a VocabularyCredit, got {self.credit}")
        elif isinstance(self.credit.corruption, CorruptionByTime):
            self.credit.corruption.distribution(self.paths)
        elif isinstance(self.log_ratio, DiscriminatorRatio):
            raise ValueError(
                "a discriminator reads one time for each sample: credit.corruption must be a CorruptionByTime, got "
                f"{self.credit.corruption}"
            )

    @property
    def auxiliary_step_conditioning(self) -> bool:
        """Whether the auxiliary is passed the step that made its input (credit over the vocabulary), or the last step
        of its samples' paths, if so configured."""
        conditioned = getattr(self.log_ratio, "step_conditioning", False)
        return conditioned or isinstance(self.credit, VocabularyCredit)

    def update_plan(self, *, discriminator: bool = False) -> UpdatePlan:
        """Order and number of the updates in a training step. A discriminator that gives the reward is updated before
        the student (the paper's Algorithm 1). An auxiliary denoiser follows the student: the reward is then read from a
        network that has not seen these samples, and its update does not need memory beside the graph of the paths.

        Args:
            discriminator: whether one is trained, for the log-ratio or for guided sampling alone.
        """
        order, updates = ["student"], {}
        if isinstance(self.log_ratio, AuxiliaryRatio | AutoregressiveRatio):
            order.append("auxiliary")
            updates["auxiliary"] = self.log_ratio.updates
        if isinstance(self.log_ratio, DiscriminatorRatio):
            order.insert(0, "discriminator")
        elif discriminator:
            order.append("discriminator")
        reads = {"student": self.regularization.data_kl.coefficient > 0.0, "discriminator": True}
        return UpdatePlan(
            order=tuple(order),
            updates=updates,
            warmup=self.log_ratio.warmup,
            reads_reference=tuple(name for name in order if reads.get(name, False)),
            keeps_logits=isinstance(self.credit, VocabularyCredit),
        )

    def loss_evaluations(self, batch: int, *, time_conditioning: bool = True) -> tuple[float, float]:
        """See `PathConfig.loss_evaluations`."""
        steps, states, _ = self.paths.evaluations(batch, time_conditioning=time_conditioning)
        forward, backward = states if self.regularization.path_kl.coefficient else 0.0, 0.0
        if self.regularization.data_kl.coefficient:
            forward, backward = forward + 2.0 * batch, backward + batch
        updates = getattr(self.log_ratio, "updates", 0)
        if isinstance(self.log_ratio, AutoregressiveRatio):  # Passes over noisy and clean tokens count as two.
            return forward + 2.0 * (2.0 + updates) * batch, backward + 2.0 * updates * batch
        if isinstance(self.credit, VocabularyCredit):
            return forward + (1.0 + bool(updates) + updates) * steps * batch, backward + updates * steps * batch
        draws = self.credit.corruption.num_draws
        if updates:
            return forward + (2.0 * draws + updates) * batch, backward + updates * batch
        reused = isinstance(self.log_ratio, DiscriminatorRatio) and self.log_ratio.reuse_logits
        return forward + (0.0 if reused else draws * batch), backward

    @classmethod
    def paper(cls, **changes: Any) -> DiDiInstructConfig:
        """Return the published method, the defaults, with changes.

        Args:
            **changes: see `with_changes`.
        """
        return with_changes(cls(), **changes)

    @classmethod
    def recommended(cls, **changes: Any) -> DiDiInstructConfig:
        """Return what the recipes use, with changes.

        A reverse KL is lower on one mode of the teacher than on all, wherever parallel draws cost more than that mode's
        surprise. Where two samples of the student agree more often than its teacher's, this adds the forward KL in
        states of data, up to a weight of 1; elsewhere it changes nothing. Student paths then need reference sequences.

        Args:
            **changes: see `with_changes`.
        """
        config = cls(
            paths=Paths.recommended(),
            advantages=Advantages.recommended(),
            log_ratio=AuxiliaryRatio(),
            credit=TokenCredit(),
            regularization=Regularization(data_kl=DataKL(coefficient=1.0, diversity_tolerance=0.05)),
            reward_clip=float("inf"),
        )
        return with_changes(config, **changes)

    @classmethod
    def autoregressive(cls, **changes: Any) -> DiDiInstructConfig:
        """Return `recommended` with an autoregressive target, which `make_networks` is given; with changes.

        The KL to the masked teacher in states of data is left out: it pulls towards what the target is to replace.

        Args:
            **changes: see `with_changes`.
        """
        credit = TokenCredit(window=2, window_before=0, corruption=CorruptionByParts(num_parts=1))
        config = cls.recommended(log_ratio=AutoregressiveRatio(), credit=credit, regularization=Regularization())
        return with_changes(config, **changes)
