"""Settings of recipes that train several methods from one teacher under one budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ...checks import check_number
from ...distillation.methods import (
    AlphaLossConfig,
    CertaintyForcingConfig,
    FeatureMMDConfig,
    IDLMConfig,
    MethodConfig,
    OnPolicyConfig,
    SDTTConfig,
)
from .budget import BudgetKind
from .distill_config import DistillConfig
from .settings import RecipeConfig


def _of(method: MethodConfig) -> DistillConfig:
    return DistillConfig(method=method, discriminator=False)


@dataclass(kw_only=True)
class MethodsConfig(RecipeConfig):
    """Methods that are trained alike, each with settings of its own.

    Args:
        methods: which are trained, such as sdtt, didi (``--distill.*``), idlm, feature-mmd, alpha, certainty and
            on-policy.
        budget: what is equal: training seconds, or network evaluations (passes of one sequence through one network, a
            backward pass counted as two).
        amount: of the budget, for each method.
        sdtt: self-distillation through time.
        idlm: our implementation of IDLM: auxiliary denoiser, reward for the whole sequence.
        feature_mmd: the feature-space MMD, paired with data.
        alpha: the alpha loss, which reads no teacher.
        certainty: certainty forcing on the teacher's samples.
        on_policy: on-policy distillation at the student's own states.
    """

    KNOWN: ClassVar[tuple[str, ...]] = ("didi", "sdtt", "idlm", "feature-mmd", "alpha", "certainty", "on-policy")

    methods: tuple[str, ...] = KNOWN
    budget: BudgetKind = "network_evaluations"
    amount: float = 60_000.0
    sdtt: DistillConfig = field(default_factory=lambda: _of(SDTTConfig()))
    idlm: DistillConfig = field(default_factory=lambda: _of(IDLMConfig()))
    feature_mmd: DistillConfig = field(default_factory=lambda: _of(FeatureMMDConfig()))
    alpha: DistillConfig = field(default_factory=lambda: _of(AlphaLossConfig()))
    certainty: DistillConfig = field(default_factory=lambda: _of(CertaintyForcingConfig()))
    on_policy: DistillConfig = field(default_factory=lambda: _of(OnPolicyConfig()))

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.methods if name not in self.KNOWN]
        if unknown:
            raise ValueError(f"unknown method {unknown[0]!r} in --methods; choose out of {', '.join(self.KNOWN)}")
        if len(set(self.methods)) != len(self.methods):
            raise ValueError(f"--methods names one twice: {', '.join(self.methods)}")
        check_number("--amount", self.amount, exclusive_minimum=0.0)

    def distillations(self) -> dict[str, DistillConfig]:
        """Settings of the methods that every recipe knows, by name, chosen or not."""
        return {
            "didi": self.distill,
            "sdtt": self.sdtt,
            "idlm": self.idlm,
            "feature-mmd": self.feature_mmd,
            "alpha": self.alpha,
            "certainty": self.certainty,
            "on-policy": self.on_policy,
        }
