"""Distillation methods."""

from .config import DiDiInstructConfig
from .didi_instruct import DiDiInstruct, StepOutput

__all__ = ["DiDiInstruct", "DiDiInstructConfig", "StepOutput"]
