"""Distillation methods."""

from .config import DiDiInstructConfig
from .didi_instruct import DiDiInstruct
from .mmd import FrozenFeatures, MMDLogRatio
from .output import Credit, StepOutput, Verdict
from .path_metrics import agreement_metrics
from .protocol import DistillationMethod, UpdatePlan
from .sdtt import SDTT, SDTTConfig

__all__ = [
    "SDTT",
    "Credit",
    "DiDiInstruct",
    "DiDiInstructConfig",
    "DistillationMethod",
    "FrozenFeatures",
    "MMDLogRatio",
    "SDTTConfig",
    "StepOutput",
    "UpdatePlan",
    "Verdict",
    "agreement_metrics",
]
