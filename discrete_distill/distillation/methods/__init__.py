"""Distillation methods."""

from .alpha_loss import AlphaLoss, AlphaLossConfig
from .base import BaseMethod
from .block_states import BlockHalves, TrajectoryStates
from .certainty_forcing import CertaintyForcing, CertaintyForcingConfig
from .config import DiDiInstructConfig
from .didi_instruct import DiDiInstruct
from .feature_mmd import FeatureMMD, FeatureMMDConfig
from .idlm import IDLM, IDLMConfig
from .method_config import MethodConfig
from .mmd import FrozenFeatures, MMDLogRatio
from .on_policy import OnPolicyConfig, OnPolicyDistillation
from .options import (
    Advantages,
    AutoregressiveRatio,
    AuxiliaryRatio,
    CorruptionByCount,
    CorruptionByParts,
    CorruptionByTime,
    DataKL,
    DiscriminatorRatio,
    ElboTimeWeight,
    PathKL,
    PathRatio,
    Paths,
    Regularization,
    SequenceCredit,
    TokenCredit,
    VocabularyCredit,
    with_changes,
)
from .output import Credit, LogRatioOutput, StepOutput
from .path_config import PathConfig
from .path_method import PathMethod
from .path_metrics import agreement_metrics
from .protocol import DistillationMethod, UpdatePlan
from .rollout_mmd import RolloutMMD, RolloutMMDConfig
from .sdtt import SDTT, SDTTConfig
from .teacher_targets import TeacherTargets

__all__ = [
    "IDLM",
    "SDTT",
    "Advantages",
    "AlphaLoss",
    "AlphaLossConfig",
    "AutoregressiveRatio",
    "AuxiliaryRatio",
    "BaseMethod",
    "BlockHalves",
    "CertaintyForcing",
    "CertaintyForcingConfig",
    "CorruptionByCount",
    "CorruptionByParts",
    "CorruptionByTime",
    "Credit",
    "DataKL",
    "DiDiInstruct",
    "DiDiInstructConfig",
    "DiscriminatorRatio",
    "DistillationMethod",
    "ElboTimeWeight",
    "FeatureMMD",
    "FeatureMMDConfig",
    "FrozenFeatures",
    "IDLMConfig",
    "LogRatioOutput",
    "MMDLogRatio",
    "MethodConfig",
    "OnPolicyConfig",
    "OnPolicyDistillation",
    "PathConfig",
    "PathKL",
    "PathMethod",
    "PathRatio",
    "Paths",
    "Regularization",
    "RolloutMMD",
    "RolloutMMDConfig",
    "SDTTConfig",
    "SequenceCredit",
    "StepOutput",
    "TeacherTargets",
    "TokenCredit",
    "TrajectoryStates",
    "UpdatePlan",
    "VocabularyCredit",
    "agreement_metrics",
    "with_changes",
]
