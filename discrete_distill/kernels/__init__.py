"""Random numbers, sampling and losses over the vocabulary: torch and Triton behind one name."""

from discrete_distill.kernels.chunked import linear_cross_entropy, linear_token_losses, sample_features
from discrete_distill.kernels.divergences import DivergenceKind, token_divergence
from discrete_distill.kernels.losses import TokenLosses, token_losses
from discrete_distill.kernels.philox import (
    STREAM_CANDIDATE,
    STREAM_CORRUPTION,
    STREAM_ORDER,
    STREAM_REMASK,
    STREAM_TIME,
    STREAM_TOKEN,
    STREAM_UNMASK,
    STREAM_USER,
    philox_4x32,
    uniform,
)
from discrete_distill.kernels.sampling import SampledRows, sample_rows

__all__ = [
    "STREAM_CANDIDATE",
    "STREAM_CORRUPTION",
    "STREAM_ORDER",
    "STREAM_REMASK",
    "STREAM_TIME",
    "STREAM_TOKEN",
    "STREAM_UNMASK",
    "STREAM_USER",
    "DivergenceKind",
    "SampledRows",
    "TokenLosses",
    "linear_cross_entropy",
    "linear_token_losses",
    "philox_4x32",
    "sample_features",
    "sample_rows",
    "token_divergence",
    "token_losses",
    "uniform",
]
