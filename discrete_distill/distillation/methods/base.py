"""What every method of the library shares: its networks, and dispatch of losses by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from torch import Generator, Tensor, nn

from ...models.step_conditioning import trainable_copy
from ...process import Denoiser, MaskedDiffusion
from ...process.blocks import block_length_of, reads_blocks
from ..networks import Networks
from ..rollout import DrawnBatch
from .method_config import MethodConfig
from .output import Credit, LogRatioOutput, StepOutput
from .protocol import UpdatePlan
from .step_check import check_accepts_step, check_parts

ConfigT = TypeVar("ConfigT", bound=MethodConfig)


class BaseMethod(Generic[ConfigT]):
    """A `DistillationMethod` without its rollout and its losses; a method of one round that compares no samples.

    Networks stay as they are given: neither ``requires_grad`` nor their mode is changed.

    Args:
        networks: student and teacher, and what else the method reads; the others are ignored. The teacher is read
            without a graph and never given a gradient.
        process: mask and schedule.
        config: every choice.

    Raises:
        TypeError: if an argument is of another class.
        ValueError: if the student is to be passed its step and has no true attribute ``accepts_step``; or if it reads
            by blocks, and the method does not, or other networks do not.

    Attributes:
        config_class: configuration of a class; its ``method_class`` is then that class.
        takes_blocks: whether the student may be a block-diffusion network (`PairedDenoiser` with a ``block_length``),
            which the method then reads through a view; see `Networks.in_blocks`.
        reads_teacher: whether other networks read states of the student.
        block_length: positions in a block of such a student; None for one that attends both ways.

    Examples:
        >>> class NelboConfig(MethodConfig):
        ...     def update_plan(self, *, discriminator=False):
        ...         return UpdatePlan(order=("student",), reads_reference=("student",))
        >>> class Nelbo(BaseMethod[NelboConfig]):  # Training on data; its rollout is left out here.
        ...     config_class = NelboConfig
        ...     def student_loss(self, rollout, *, reference=None, generator=None, **given):
        ...         out = self.process.nelbo(self.student, reference, by="count", generator=generator)
        ...         return StepOutput(out.loss, {"nats": out.loss.detach()})
        >>> method = Nelbo(networks, process, NelboConfig())
        >>> method.loss("student", None, reference=data, generator=generator).metrics["nats"]  # log(8)
        tensor(2.0794)
    """

    config_class: ClassVar[type[MethodConfig]]
    takes_blocks: ClassVar[bool] = False
    reads_teacher: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "config_class" in vars(cls):
            cls.config_class.method_class = cls

    def __init__(self, networks: Networks, process: MaskedDiffusion, config: ConfigT) -> None:
        check_parts(self, networks, process, config)
        if reads_blocks(networks.student) and not self.takes_blocks:
            raise ValueError(
                f"{type(self).__name__} walks whole sequences, and the student reads by blocks of "
                f"{networks.student.block_length}, each given finished ones: take DiDiInstruct, IDLM, SDTT, AlphaLoss, "
                "FeatureMMD or CertaintyForcing"
            )
        self.block_length = block_length_of(networks.student)
        networks = networks.in_blocks(reads_teacher=self.reads_teacher)
        if config.step_conditioning:
            check_accepts_step(networks.student, "student", "step_conditioning")
        self.config = config
        self.student = networks.student
        self.teacher: Any = networks.teacher
        self.auxiliary, self.discriminator = networks.auxiliary, networks.discriminator
        self.target: Any = networks.target
        self.process = process

    @staticmethod
    def make_student(teacher: Denoiser, config: MethodConfig) -> nn.Module:
        """Copy the teacher. The copy is trainable and in evaluation mode, with the end of its step as an input if
        ``config.step_conditioning``; its initial outputs are the teacher's."""
        return trainable_copy(teacher, step_conditioning=config.step_conditioning)

    @staticmethod
    def make_auxiliary(teacher: Denoiser, config: MethodConfig) -> nn.Module:
        """Copy the teacher, to be fitted to the student. The copy is trainable and in evaluation mode, with a step as
        an input if ``config.auxiliary_step_conditioning``; its initial outputs are the teacher's."""
        return trainable_copy(teacher, step_conditioning=config.auxiliary_step_conditioning)

    @property
    def update_plan(self) -> UpdatePlan:
        """Order and number of the updates in a training step."""
        return self.config.update_plan()

    def begin_step(self, step: int, num_steps: int, *, average: nn.Module | None = None) -> None:
        """See `DistillationMethod`; nothing to prepare."""

    def rollout(self, *sizes: Any, **given: Any) -> DrawnBatch:
        """Draw what the losses of one training step are computed from; see `DistillationMethod`."""
        raise NotImplementedError(f"{type(self).__name__} has no rollout: define rollout(...)")

    def loss(
        self,
        name: str,
        rollout: Any,
        *,
        reference: Tensor | None = None,
        generator: Generator | None = None,
        num_tokens: Tensor | float | None = None,
        credit: Credit | None = None,
        log_ratio_output: LogRatioOutput | None = None,
    ) -> StepOutput:
        """Compute the loss of one network of `update_plan`; see `DistillationMethod`.

        Raises:
            ValueError: if the method does not train ``name``, or its loss needs a reference and got none.
        """
        plan = self.update_plan
        if name not in plan.order:
            raise ValueError(f"this method trains {', '.join(plan.order)}, not {name!r}")
        if name in plan.reads_reference and reference is None and credit is None:
            raise ValueError(f"the loss of the {name} reads reference sequences; pass reference=")
        given: dict[str, Any] = {"generator": generator, "num_tokens": num_tokens}
        if name == "student":
            return self.student_loss(
                rollout, log_ratio_output=log_ratio_output, credit=credit, reference=reference, **given
            )
        return self._ratio_loss(name, rollout, reference, **given)

    def student_loss(self, *rollout: Any, **given: Any) -> StepOutput:
        """Compute the student's loss of one rollout, with the keywords of `loss`."""
        raise NotImplementedError(
            f"{type(self).__name__} has no loss of the student: define student_loss(rollout, ...)"
        )

    def _ratio_loss(self, name: str, rollout: Any, reference: Tensor | None, **given: Any) -> StepOutput:
        """Compute the loss of a network other than the student, which a subclass names in its `update_plan`."""
        raise NotImplementedError(
            f"{type(self).__name__} has no loss of the {name}: define _ratio_loss(name, rollout, reference, **given)"
        )

    def credits(
        self,
        rollouts: Sequence[Any],
        log_ratio_outputs: Sequence[LogRatioOutput | None] | None = None,
        generators: Sequence[Generator] | None = None,
        *,
        references: Sequence[Callable[[], Tensor]] | None = None,
    ) -> list[Credit] | None:
        """None: no samples are compared."""
        return None

    def rollout_metrics(self, rollout: Any) -> dict[str, Tensor]:
        """None."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from `state_dict`."""
