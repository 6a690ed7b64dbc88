"""Networks: the denoiser of MDLM and the discriminator; foreign models; trained weights by name or path."""

from .adapters import CallingConvention, ForeignDenoiser, ForeignFeatureDenoiser, as_denoiser
from .card import ModelFacts
from .discriminator import Discriminator, RatioNetwork, discriminator_accuracy, discriminator_loss, masked_mean
from .dit import DiT, DiTConfig
from .hub import push_distilled, save_distilled
from .loading import load_denoiser, load_discriminator
from .lora import add_lora, lora_weights, merge_lora
from .prior_guidance import guide_by_prior, prior_log_probs
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
    "guide_by_prior",
    "load_denoiser",
    "load_discriminator",
    "lora_weights",
    "masked_mean",
    "merge_lora",
    "prior_log_probs",
    "push_distilled",
    "save_distilled",
]
