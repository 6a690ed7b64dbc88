"""Networks: the denoiser of MDLM and the discriminator."""

from .discriminator import Discriminator, RatioNetwork, discriminator_loss, masked_mean
from .dit import DiT, DiTConfig

__all__ = ["DiT", "DiTConfig", "Discriminator", "RatioNetwork", "discriminator_loss", "masked_mean"]
