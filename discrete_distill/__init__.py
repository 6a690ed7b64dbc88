"""Parts for distilling and sampling masked diffusion language models, and DiDi-Instruct assembled from them."""

from .divergence import (
    AuxiliaryDenoiserLogRatio,
    DiscriminatorLogRatio,
    ExactLogRatio,
    ScoreFunctionIntegralKL,
    token_divergence,
)
from .exact import integral_kl
from .matching import IntermediateStateMatcher
from .methods import DiDiInstruct, DiDiInstructConfig
from .models import Discriminator, as_denoiser
from .process import (
    BetaTime,
    CosineSchedule,
    GeometricSchedule,
    LinearSchedule,
    LogLinearSchedule,
    MaskedDiffusion,
    PolynomialSchedule,
    StratifiedTime,
    UniformTime,
)
from .rewards import (
    BatchNormalizer,
    GroupNormalizer,
    LeaveOneOutNormalizer,
    LogRatioReward,
    RunningMean,
    group_advantages,
)
from .rollout import Rollout
from .samplers import AncestralSampler, RGASampler, SamplerOutput

__version__ = "0.1.0"

__all__ = [
    "AncestralSampler",
    "AuxiliaryDenoiserLogRatio",
    "BatchNormalizer",
    "BetaTime",
    "CosineSchedule",
    "DiDiInstruct",
    "DiDiInstructConfig",
    "Discriminator",
    "DiscriminatorLogRatio",
    "ExactLogRatio",
    "GeometricSchedule",
    "GroupNormalizer",
    "IntermediateStateMatcher",
    "LeaveOneOutNormalizer",
    "LinearSchedule",
    "LogLinearSchedule",
    "LogRatioReward",
    "MaskedDiffusion",
    "PolynomialSchedule",
    "RGASampler",
    "Rollout",
    "RunningMean",
    "SamplerOutput",
    "ScoreFunctionIntegralKL",
    "StratifiedTime",
    "UniformTime",
    "as_denoiser",
    "group_advantages",
    "integral_kl",
    "token_divergence",
]
