"""Distillation by a maximum mean discrepancy between samples of the student and data, in features of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ...process import MaskedDiffusion
from ..divergence import ScoreFunctionIntegralKL
from ..divergence.mmd import check_bandwidth
from ..networks import Networks
from ..rollout import Rollout
from .mmd import FeatureNetwork, FrozenFeatures, MMDLogRatio
from .options import Advantages
from .output import LogRatioOutput
from .path_config import PathConfig
from .path_method import PathMethod
from .protocol import UpdatePlan


@dataclass(frozen=True, kw_only=True)
class RolloutMMDConfig(PathConfig):
    """Configuration of `RolloutMMD`; `PathConfig` has the other fields.

    The batch must hold two groups or more. Rewards are scaled by their deviation over the batch, since kernel values
    differ by hundredths.

    Args:
        advantages: normalisation of the rewards; rows of a group are not compared with each other.
        bandwidth: of the kernel; the median distance within the reference if None.

    Raises:
        TypeError: if a part is of another class.
        ValueError: if a number is out of range.

    Examples:
        >>> config = RolloutMMDConfig.recommended(paths={"num_steps": (2,)}, bandwidth=0.5)
        >>> config.group_size, config.update_plan().reads_reference
        (4, ('student',))
    """

    advantages: Advantages = field(default_factory=lambda: Advantages.recommended(group_size=4))
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bandwidth is not None:
            check_bandwidth(self.bandwidth)

    def update_plan(self, *, discriminator: bool = False) -> UpdatePlan:
        """The student alone, which reads reference sequences; a discriminator is not trained."""
        return UpdatePlan(order=("student",), reads_reference=("student",))

    def loss_evaluations(self, batch: int, *, time_conditioning: bool = True) -> tuple[float, float]:
        """Features of samples and reference."""
        return 2.0 * batch, 0.0


class RolloutMMD(PathMethod[RolloutMMDConfig]):
    """Minimise ``MMD^2`` between the tokens of whole student samples and of unpaired data.

    The reward of a token is the witness ``E k(f, data's) - E k(f, student's)`` in the features ``f`` of a frozen
    network, with an RBF kernel; the student's distribution is estimated from *other* groups, so that the gradient, that
    of the score function along the path, is exactly that of ``MMD^2``. The student is the only network that is trained.

    Our implementation, and no published method. The feature-space MMD of the literature (arXiv 2610.06648) is paired:
    it fills the masks of one corrupted data sequence with several candidates from a single student pass, compares each
    with that same sequence, and needs no path. Here whole paths are drawn from all mask, and compared with data that
    has nothing to do with them.

    Args:
        networks: student and teacher; see `make_networks`.
        process: mask and schedule.
        config: every choice.
        features: ``features(x_0, t) -> [B, L, D]`` of clean tokens, frozen; the middle block of the
            teacher by default.

    Raises:
        ValueError: if the student is to be passed its step and has no true attribute ``accepts_step``, or the teacher
            has no blocks and no features are given.

    Examples:
        >>> method = RolloutMMD(networks, process)
        >>> rollout = method.rollout(8, 16, generator=generator)
        >>> method.loss("student", rollout, reference=data, generator=generator).loss.backward()
    """

    config_class = RolloutMMDConfig

    def __init__(
        self,
        networks: Networks,
        process: MaskedDiffusion,
        config: RolloutMMDConfig | None = None,
        *,
        features: FeatureNetwork | None = None,
    ) -> None:
        config = config if config is not None else RolloutMMDConfig()
        if features is None:
            features = FrozenFeatures(networks.teacher)  # type: ignore[arg-type]
        self.log_ratio = MMDLogRatio(features, config.advantages.group_size, config.bandwidth)
        estimator = ScoreFunctionIntegralKL(
            process, self.log_ratio, importance_weight=False, **config.advantages.estimator_options()
        )
        super().__init__(networks, process, config, estimator=estimator)

    def _judge(self, rollout: Rollout, reference: Callable[[], Tensor] | None) -> LogRatioOutput:
        if reference is None:
            raise ValueError("the MMD compares samples with data; pass reference=")
        return self.log_ratio.log_ratio_output(rollout, reference())
