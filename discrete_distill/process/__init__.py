"""The forward and reverse process of masked diffusion."""

from .blocks import PairedDenoiser
from .denoiser import Denoiser, FeatureDenoiser, ignores_time, logits_at, logits_in_parts, step_kwargs
from .masking import Corruption, MaskedDiffusion, NelboOutput
from .modes import evaluation_mode
from .schedules import (
    CosineSchedule,
    GeometricSchedule,
    LinearSchedule,
    LogLinearSchedule,
    MaskingSchedule,
    PolynomialSchedule,
)
from .time import BetaTime, StratifiedTime, TimeDistribution, TimeSample, UniformTime
from .unmasking_order import UnmaskingOrder, check_unmasking_order
from .weights import ConstantWeight, ElboWeight, TimeWeight

__all__ = [
    "BetaTime",
    "ConstantWeight",
    "Corruption",
    "CosineSchedule",
    "Denoiser",
    "ElboWeight",
    "FeatureDenoiser",
    "GeometricSchedule",
    "LinearSchedule",
    "LogLinearSchedule",
    "MaskedDiffusion",
    "MaskingSchedule",
    "NelboOutput",
    "PairedDenoiser",
    "PolynomialSchedule",
    "StratifiedTime",
    "TimeDistribution",
    "TimeSample",
    "TimeWeight",
    "UniformTime",
    "UnmaskingOrder",
    "check_unmasking_order",
    "evaluation_mode",
    "ignores_time",
    "logits_at",
    "logits_in_parts",
    "step_kwargs",
]
