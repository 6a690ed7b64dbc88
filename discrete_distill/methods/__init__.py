"""Distillation methods."""

from .config import DiDiInstructConfig
from .didi_instruct import DiDiInstruct
from .output import StepOutput, Verdict

__all__ = ["DiDiInstruct", "DiDiInstructConfig", "StepOutput", "Verdict"]
