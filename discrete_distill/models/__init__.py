"""Networks: the denoiser of MDLM and the discriminator; foreign models as denoisers; weights of others."""

from .discriminator import Discriminator, RatioNetwork, discriminator_loss, masked_mean
from .dit import DiT, DiTConfig
from .hub import ModelFacts, push_distilled, save_distilled
from .weights import CheckpointError

__all__ = [
    "CheckpointError",
    "DiT",
    "DiTConfig",
    "Discriminator",
    "ModelFacts",
    "RatioNetwork",
    "discriminator_loss",
    "masked_mean",
    "push_distilled",
    "save_distilled",
]
