"""Parts for distilling and sampling masked diffusion language models, and DiDi-Instruct assembled from them."""

from .distillation.divergence import (
    AuxiliaryDenoiserLogRatio,
    DiscriminatorLogRatio,
    ExactLogRatio,
    ScoreFunctionIntegralKL,
    integral_kl,
    token_divergence,
)
from .distillation.methods import SDTT, DiDiInstruct, DiDiInstructConfig, SDTTConfig
from .distillation.networks import Networks, SharedBase, make_networks
from .distillation.paths import IntermediateStateMatcher
from .distillation.rewards import (
    BatchNormalizer,
    GroupNormalizer,
    LeaveOneOutNormalizer,
    LogRatioReward,
    RunningMean,
    group_advantages,
)
from .distillation.rollout import Rollout
from .models import Discriminator, StepConditioned, as_denoiser, load_denoiser
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
from .samplers import (
    AnalyticSampler,
    AncestralSampler,
    BlockwiseSampler,
    ConfidenceSampler,
    CudaGraphSampler,
    EntropyBoundedSampler,
    FirstHittingSampler,
    Frame,
    PathPlanningSampler,
    ReMaskingSampler,
    RGASampler,
    SamplerOutput,
    TeacherRatio,
)

__version__ = "0.2.0"

__all__ = [
    "SDTT",
    "AnalyticSampler",
    "AncestralSampler",
    "AuxiliaryDenoiserLogRatio",
    "BatchNormalizer",
    "BetaTime",
    "BlockwiseSampler",
    "ConfidenceSampler",
    "CosineSchedule",
    "CudaGraphSampler",
    "DiDiInstruct",
    "DiDiInstructConfig",
    "Discriminator",
    "DiscriminatorLogRatio",
    "EntropyBoundedSampler",
    "ExactLogRatio",
    "FirstHittingSampler",
    "Frame",
    "GeometricSchedule",
    "GroupNormalizer",
    "IntermediateStateMatcher",
    "LeaveOneOutNormalizer",
    "LinearSchedule",
    "LogLinearSchedule",
    "LogRatioReward",
    "MaskedDiffusion",
    "Networks",
    "PathPlanningSampler",
    "PolynomialSchedule",
    "RGASampler",
    "ReMaskingSampler",
    "Rollout",
    "RunningMean",
    "SDTTConfig",
    "SamplerOutput",
    "ScoreFunctionIntegralKL",
    "SharedBase",
    "StepConditioned",
    "StratifiedTime",
    "TeacherRatio",
    "UniformTime",
    "as_denoiser",
    "group_advantages",
    "integral_kl",
    "load_denoiser",
    "make_networks",
    "token_divergence",
]
