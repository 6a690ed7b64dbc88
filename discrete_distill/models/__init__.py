"""Networks: the denoiser of MDLM and the discriminator."""

from .dit import DiT, DiTConfig

__all__ = ["DiT", "DiTConfig"]
