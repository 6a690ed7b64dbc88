"""Students of low rank (LoRA, arXiv 2106.09685) through peft, an optional extra: the network keeps its class and its
methods, and only small matrices beside its linear layers are trained.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Generator, Tensor, nn

from .head import VocabularyHead

Network = TypeVar("Network", bound=nn.Module)

# Of the networks here: the vocabulary head, which is as large as the rest, and the embeddings of time.
LEFT_ALONE = ("output_layer", "sigma_map", "step_map")
KEPT_TRAINABLE = ("step_map",)


def add_lora(
    network: Network,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
    trainable: Sequence[str] = KEPT_TRAINABLE,
    generator: Generator | None = None,
) -> Network:
    """Put ``y = W x + (alpha / rank) B A x`` in the place of linear layers, in the network itself, and return it.

    ``W`` is frozen, ``A`` is random and ``B`` zero, so that the network's first answers are unchanged.

    Args:
        network: a `DiT`, a model behind `as_denoiser`, or any module.
        rank: rows of ``A``.
        alpha: scale of the product.
        dropout: of ``x``, in training.
        targets: names of linear layers, in full or their ends; None takes all but the vocabulary head and the
            embeddings of time.
        trainable: beginnings of names of other parameters that stay trainable; by default the embedding of the step,
            which starts at zero and has to learn.
        generator: source of ``A``.

    Raises:
        ImportError: if peft is not installed.
        ValueError: if the rank is below 1, no linear layer has one of these names, or there are LoRA weights already.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    if any(".lora_" in name for name, _ in network.named_parameters()):
        raise ValueError(f"the {type(network).__name__} has LoRA weights already: fold them in with merge_lora first")
    names = [name for name in linear_layers(network) if _wanted(name, targets)]
    if not names:
        raise ValueError(f"no linear layer is named {targets}; there are {', '.join(linear_layers(network)[:8])}, ...")
    peft = _peft()
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names, bias="none")
    peft.inject_adapter_in_model(config, network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(".lora_" in name or name.startswith(tuple(trainable)))
        if ".lora_A." in name:
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
    return network


def merge_lora(network: Network) -> Network:
    """Fold the products into the weights, ``W + (alpha / rank) B A``, and remove what was added; in the network itself.

    All parameters can be trained afterwards. Names are as before `add_lora`, so that the network can be saved.

    Raises:
        ImportError: if peft is not installed.
        ValueError: if there is nothing to merge, or a merged weight is not finite.
    """
    layer_class = importlib.import_module(_peft().__name__ + ".tuners.tuners_utils").BaseTunerLayer
    wrapped = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, layer_class)]
    if not wrapped:
        raise ValueError(f"the {type(network).__name__} has no LoRA weights; add_lora puts them there")
    for name, layer in wrapped:
        layer.merge(safe_merge=True)
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, layer.get_base_layer())
    vars(network).pop("peft_config", None)
    return network.requires_grad_(True)


def lora_weights(network: nn.Module) -> dict[str, Tensor]:
    """What training changed: the small matrices and whatever else is trainable, by name."""
    return {name: parameter.detach() for name, parameter in network.named_parameters() if parameter.requires_grad}


def linear_layers(network: nn.Module) -> list[str]:
    """Names of the linear layers that `add_lora` can take."""
    return [name for name, module in network.named_modules() if type(module) in (nn.Linear, VocabularyHead)]


def _wanted(name: str, targets: Sequence[str] | None) -> bool:
    if targets is not None:
        return any(name == target or name.endswith(f".{target}") for target in targets)
    return not any(part in LEFT_ALONE for part in name.split("."))


def _peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'discrete_distill[lora]'") from error
