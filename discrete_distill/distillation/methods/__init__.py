"""Distillation methods."""

from .config import DiDiInstructConfig
from .didi_instruct import DiDiInstruct
from .idlm import IDLM, IDLMConfig
from .mmd import FrozenFeatures, MMDLogRatio
from .output import Credit, LogRatioOutput, StepOutput
from .path_config import PathConfig
from .path_method import PathMethod
from .path_metrics import agreement_metrics
from .protocol import DistillationMethod, UpdatePlan
from .rollout_mmd import RolloutMMD, RolloutMMDConfig
from .sdtt import SDTT, SDTTConfig

__all__ = [
    "IDLM",
    "SDTT",
    "Credit",
    "DiDiInstruct",
    "DiDiInstructConfig",
    "DistillationMethod",
    "FrozenFeatures",
    "IDLMConfig",
    "LogRatioOutput",
    "MMDLogRatio",
    "PathConfig",
    "PathMethod",
    "RolloutMMD",
    "RolloutMMDConfig",
    "SDTTConfig",
    "StepOutput",
    "UpdatePlan",
    "agreement_metrics",
]
