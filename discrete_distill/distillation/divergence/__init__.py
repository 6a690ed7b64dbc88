"""Divergences: integral KL, log-ratios, and between single tokens."""

from ...kernels import DivergenceKind, token_divergence
from .autoregressive_log_ratio import AutoregressiveLogRatio, check_autoregressive
from .log_ratio import (
    AuxiliaryDenoiserLogRatio,
    DiscriminatorLogRatio,
    ExactLogRatio,
    LogRatio,
    LogRatioEstimator,
    difference_of_logs,
)
from .mmd import median_bandwidth, mmd_squared, rbf_kernel, token_witness
from .sample_scores import SampleScores
from .score_function import ScoreFunctionIntegralKL
from .surrogate import SurrogateOutput, integral_kl
from .vocabulary import vocabulary_cost

__all__ = [
    "AutoregressiveLogRatio",
    "AuxiliaryDenoiserLogRatio",
    "DiscriminatorLogRatio",
    "DivergenceKind",
    "ExactLogRatio",
    "LogRatio",
    "LogRatioEstimator",
    "SampleScores",
    "ScoreFunctionIntegralKL",
    "SurrogateOutput",
    "check_autoregressive",
    "difference_of_logs",
    "integral_kl",
    "median_bandwidth",
    "mmd_squared",
    "rbf_kernel",
    "token_divergence",
    "token_witness",
    "vocabulary_cost",
]
