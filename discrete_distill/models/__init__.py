"""Networks: the denoiser of MDLM and the discriminator; foreign models; trained weights by name or path."""

from .adapters import CallingConvention, ForeignDenoiser, ForeignFeatureDenoiser, as_denoiser
from .card import ModelFacts
from .discriminator import Discriminator, RatioNetwork, discriminator_accuracy, discriminator_loss, masked_mean
from .dit import DiT, DiTConfig
from .hub import push_distilled, save_distilled
from .loading import load_denoiser, load_discriminator
from .lora import add_lora, lora_weights, merge_lora
from .weights import CheckpointError

__all__ = [
    "CallingConvention",
    "CheckpointError",
    "DiT",
    "DiTConfig",
    "Discriminator",
    "ForeignDenoiser",
    "ForeignFeatureDenoiser",
    "ModelFacts",
    "RatioNetwork",
    "add_lora",
    "as_denoiser",
    "discriminator_accuracy",
    "discriminator_loss",
    "load_denoiser",
    "load_discriminator",
    "lora_weights",
    "masked_mean",
    "merge_lora",
    "push_distilled",
    "save_distilled",
]
