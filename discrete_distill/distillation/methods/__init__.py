"""Distillation methods."""

from .base import BaseMethod
from .config import DiDiInstructConfig
from .didi_instruct import DiDiInstruct
from .idlm import IDLM, IDLMConfig
from .method_config import MethodConfig
from .mmd import FrozenFeatures, MMDLogRatio
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
    "BaseMethod",
    "Credit",
    "DiDiInstruct",
    "DiDiInstructConfig",
    "DistillationMethod",
    "FrozenFeatures",
    "IDLMConfig",
    "LogRatioOutput",
    "MMDLogRatio",
    "MethodConfig",
    "PathConfig",
    "PathMethod",
    "RolloutMMD",
    "RolloutMMDConfig",
    "SDTTConfig",
    "StepOutput",
    "TeacherTargets",
    "UpdatePlan",
    "agreement_metrics",
]
