"""Options of the terms that are added to the surrogate in the student's loss."""

from __future__ import annotations

from dataclasses import dataclass, field

from ....checks import check_number
from ...divergence import DivergenceKind
from ..diversity_control import DiversityControl
from .fields import check_fields


@dataclass(frozen=True, kw_only=True)
class PathKL:
    """KL between student and teacher along the student's path.

    Args:
        coefficient: its weight (paper: 0.02); 0 for none.
        kind: forward, reverse, jeffreys, js or tv (paper: jeffreys).
        beta: share of the first direction where a kind has two (paper: 0.5).

    Raises:
        ValueError: if a number is out of range or the kind is unknown.

    Examples:
        >>> config = DiDiInstructConfig(regularization=Regularization(path_kl=PathKL(coefficient=0.1, kind="forward")))
        >>> method = DiDiInstruct(networks, process, config)
        >>> rollout = method.rollout(8, 16, generator=generator)
        >>> method.loss("student", rollout, generator=generator).metrics["teacher_divergence"].item()  # It is a copy.
        0.0
    """

    coefficient: float = 0.0
    kind: DivergenceKind = "jeffreys"
    beta: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        check_number("path_kl.coefficient", self.coefficient, minimum=0.0)
        check_number("path_kl.beta", self.beta, minimum=0.0, maximum=1.0)


@dataclass(frozen=True, kw_only=True)
class DataKL:
    """Forward KL from the teacher in states of reference sequences; it keeps the modes of the data.

    The sequences are corrupted to the times of the paths. See `data_divergence`.

    Args:
        coefficient: its weight (paper: 0); 0 for none.
        diversity_tolerance: excess of the agreement of two samples at which that weight is full; it is 0 where samples
            are as diverse as the reference, or as those of the undistilled student, which the first rollouts, as many
            as the log-ratio's warm-up (at least one), show. None: it is always full. See `DiversityControl`.

    Raises:
        ValueError: if a number is out of range.

    Examples:
        >>> regularization = Regularization(data_kl=DataKL(coefficient=0.5, diversity_tolerance=0.05))
        >>> DiDiInstructConfig(regularization=regularization).update_plan().reads_reference
        ('discriminator', 'student')
    """

    coefficient: float = 0.0
    diversity_tolerance: float | None = None

    def __post_init__(self) -> None:
        check_number("data_kl.coefficient", self.coefficient, minimum=0.0)
        if self.diversity_tolerance is not None:
            check_number("diversity_tolerance", self.diversity_tolerance, exclusive_minimum=0.0)

    def control(self, warmup: int) -> DiversityControl | None:
        """Return what controls the weight, or None where it is fixed.

        Args:
            warmup: rollouts of the undistilled student.
        """
        if not self.coefficient or self.diversity_tolerance is None:
            return None
        return DiversityControl(tolerance=self.diversity_tolerance, first=max(1, warmup))


@dataclass(frozen=True, kw_only=True)
class Regularization:
    """What is added to the student's surrogate; nothing by default.

    Args:
        path_kl: KL between student and teacher along the path.
        data_kl: forward KL from the teacher in states of data.
        entropy_coefficient: weight of the student's entropy along the path, a bonus (paper: 5e-4); 0 for none.

    Raises:
        TypeError: if a part is of another class.
        ValueError: if a number is out of range.

    Examples:
        >>> config = DiDiInstructConfig.paper(regularization={"path_kl": {"coefficient": 0.0}})
        >>> config.regularization.path_kl.coefficient, config.regularization.entropy_coefficient
        (0.0, 0.0005)
        >>> plain = DiDiInstructConfig(regularization=Regularization())  # The surrogate alone.
    """

    path_kl: PathKL = field(default_factory=PathKL)
    data_kl: DataKL = field(default_factory=DataKL)
    entropy_coefficient: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_number("entropy_coefficient", self.entropy_coefficient, minimum=0.0)
