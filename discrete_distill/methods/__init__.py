"""Distillation methods."""

from .config import DiDiInstructConfig
from .didi_instruct import DiDiInstruct
from .mmd import FrozenFeatures, MMDLogRatio
from .output import StepOutput, Verdict
from .path_metrics import agreement_metrics
from .sdtt import SDTT, SDTTConfig

__all__ = [
    "SDTT",
    "DiDiInstruct",
    "DiDiInstructConfig",
    "FrozenFeatures",
    "MMDLogRatio",
    "SDTTConfig",
    "StepOutput",
    "Verdict",
    "agreement_metrics",
]
