"""Students of low rank (LoRA, arXiv 2106.09685) through peft, an optional extra: the network keeps its class and its
methods, and only small matrices beside its linear layers are trained.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Generator, Tensor, nn

from ..checks import check_count, check_number
from .head import VocabularyHead

Network = TypeVar("Network", bound=nn.Module)

# Of the networks here: the output layer and the embeddings of time.
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

    ``W`` is frozen, ``A`` is random and ``B`` zero, so that the network's initial outputs are unchanged.

    Args:
        network: a `DiT`, a model behind `as_denoiser`, or any module.
        rank: rows of ``A``.
        alpha: scale of the product.
        dropout: of ``x``, in training.
        targets: names of linear layers, in full or their ends; None takes all but the vocabulary head, layers whose
            weight is tied to another's, and the embeddings of time.
        trainable: beginnings of names of other parameters that stay trainable; by default the embedding of the step,
            which starts at zero and has to learn.
        generator: source of ``A``.

    Raises:
        ImportError: if peft is not installed.
        ValueError: if the rank is below 1, no linear layer has one of these names, one of them has a tied weight, or
            there are LoRA weights already.

    Examples:
        >>> adapted = add_lora(teacher, rank=2)
        >>> all(".lora_" in name for name, weight in adapted.named_parameters() if weight.requires_grad)
        True
    """
    check_count("rank", rank)
    check_number("alpha", alpha, exclusive_minimum=0.0)
    check_number("dropout", dropout, minimum=0.0, exclusive_maximum=1.0)
    if has_lora(network):
        raise ValueError(f"the {type(network).__name__} has LoRA weights already: fold them in with merge_lora first")
    names = _targeted(network, targets)
    if not names:
        raise ValueError(f"no linear layer is named {targets}; there are {', '.join(linear_layers(network)[:8])}, ...")
    _refuse_tied(network, names)
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
        ValueError: if there is nothing to merge, an adapted weight is tied to another layer's, which the merge would
            change too, or a merged weight is not finite.

    Examples:
        >>> adapted = add_lora(teacher, rank=2)
        >>> merge_lora(adapted).save_pretrained("student")
        >>> load_denoiser("student").config.vocab_size
        9
    """
    layer_class = importlib.import_module(_peft().__name__ + ".tuners.tuners_utils").BaseTunerLayer
    wrapped = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, layer_class)]
    if not wrapped:
        raise ValueError(f"the {type(network).__name__} has no LoRA weights; add_lora puts them there")
    _refuse_tied(network, [name for name, _ in wrapped])
    for name, layer in wrapped:
        layer.merge(safe_merge=True)
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, layer.get_base_layer())
    vars(network).pop("peft_config", None)
    return network.requires_grad_(True)


def lora_size(network: nn.Module, *, rank: int, targets: Sequence[str] | None = None) -> int:
    """Numbers in the matrices that `add_lora` would put into a network."""
    layers = [network.get_submodule(name) for name in _targeted(network, targets)]
    return rank * sum(sum(weight.shape) for layer in layers for weight in [layer.get_parameter("weight")])


def has_lora(network: nn.Module) -> bool:
    """Whether there are low-rank weights that were not merged."""
    return any(".lora_" in name for name, _ in network.named_parameters())


def refuse_unmerged(network: nn.Module) -> None:
    """Refuse to save or to copy a network that has low-rank weights."""
    if has_lora(network):
        raise ValueError("the network has LoRA weights: fold them in with merge_lora first")


def lora_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return what training changes, the low-rank matrices and all other trainable parameters, by name.

    Examples:
        >>> small = sum(weight.numel() for weight in lora_weights(add_lora(teacher, rank=1)).values())
        >>> small < sum(weight.numel() for weight in teacher.parameters())
        True
    """
    return {name: parameter.detach() for name, parameter in network.named_parameters() if parameter.requires_grad}


def lora_settings(network: nn.Module) -> dict[str, Any]:
    """Rank, alpha and targets, arguments of `add_lora` that make the same matrices again.

    Args:
        network: with low-rank matrices.
    """
    layers = {name: module for name, module in network.named_modules() if hasattr(module, "lora_alpha")}
    first: Any = next(iter(layers.values()))
    rank, alpha = (next(iter(each.values())) for each in (first.r, first.lora_alpha))
    return {"rank": rank, "alpha": alpha, "targets": list(layers)}


def linear_layers(network: nn.Module) -> list[str]:
    """Names of the linear layers that `add_lora` can take."""
    return [name for name, module in network.named_modules() if type(module) in (nn.Linear, VocabularyHead)]


def _targeted(network: nn.Module, targets: Sequence[str] | None) -> list[str]:
    if targets is not None:
        return [
            name
            for name in linear_layers(network)
            if any(name == target or name.endswith(f".{target}") for target in targets)
        ]
    heads, tied = _heads(network), _tied_layers(network)
    return [
        name
        for name in linear_layers(network)
        if name not in tied
        and not any(part in LEFT_ALONE for part in name.split("."))
        and not any(name == head or name.startswith(f"{head}.") for head in heads)
    ]


def _heads(network: nn.Module) -> set[str]:
    """Names of the modules that return logits: that of the call signature, and Hugging Face's output embeddings."""
    names = {module: name for name, module in network.named_modules()}
    found: set[str] = set()
    for module in network.modules():
        head: Any = getattr(module, "vocabulary_head", None)
        if head in names:
            found.add(names[head])
        output = getattr(module, "get_output_embeddings", None)
        if callable(output):
            try:
                head = output()
            except (AttributeError, NotImplementedError):  # of transformers' models that have none
                continue
            if head in names:
                found.add(names[head])
    return found


def _tied_layers(network: nn.Module) -> dict[str, str]:
    """Layers that are reached by, or own a parameter that is reached by, a second name; with that name."""
    places: dict[int, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        for owned in (module, *module.parameters(recurse=False)):
            places.setdefault(id(owned), []).append(name)
    tied: dict[str, str] = {}
    for names in places.values():
        for name in names if len(names) > 1 else ():
            tied[name] = next((other for other in names if other != name), name)
    return tied


def _refuse_tied(network: nn.Module, names: Sequence[str]) -> None:
    tied = _tied_layers(network)
    for name in names:
        for layer in (name, f"{name}.base_layer"):
            if layer in tied:
                raise ValueError(
                    f"the weight of {name} is tied to {tied[layer]}, which a merge would change too; "
                    "leave it out of targets, or untie it first"
                )


def _peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'discrete_distill[lora]'") from error
