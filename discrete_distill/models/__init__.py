"""Networks: the denoiser of MDLM and the discriminator; external models; trained weights by name or path."""

from .adapters import as_denoiser
from .block_cache import BlockCache
from .call_signature import CallSignature
from .capabilities import BlockDenoiser, EmbeddingDenoiser, HiddenStatesDenoiser
from .discriminator import (
    Discriminator,
    RatioNetwork,
    TrunkDiscriminator,
    discriminator_accuracy,
    discriminator_loss,
    masked_mean,
)
from .dit import DiT
from .dit_config import DiTConfig
from .in_blocks import InBlocks
from .io.adapter_files import save_adapters
from .io.card import ModelFacts
from .io.distilled import push_distilled, save_distilled
from .io.loading import load_denoiser, load_discriminator
from .io.sampling_file import Sampling, load_sampling, save_sampling
from .io.weights import CheckpointError
from .lora import add_lora, lora_weights, merge_lora
from .prior_guidance import PriorGuided, guide_by_prior, prior_log_probs
from .step_conditioning import StepConditioned
from .wrapped_denoiser import WrappedDenoiser

__all__ = [
    "BlockCache",
    "BlockDenoiser",
    "CallSignature",
    "CheckpointError",
    "DiT",
    "DiTConfig",
    "Discriminator",
    "EmbeddingDenoiser",
    "HiddenStatesDenoiser",
    "InBlocks",
    "ModelFacts",
    "PriorGuided",
    "RatioNetwork",
    "Sampling",
    "StepConditioned",
    "TrunkDiscriminator",
    "WrappedDenoiser",
    "add_lora",
    "as_denoiser",
    "discriminator_accuracy",
    "discriminator_loss",
    "guide_by_prior",
    "load_denoiser",
    "load_discriminator",
    "load_sampling",
    "lora_weights",
    "masked_mean",
    "merge_lora",
    "prior_log_probs",
    "push_distilled",
    "save_adapters",
    "save_distilled",
    "save_sampling",
]
