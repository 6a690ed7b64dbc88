"""How others store the networks of this family, turned into our own names: MDLM, DUO, SDTT, DiDi-Instruct.

All four share one transformer, whose parameter names are `DiT`'s own; they differ in what stands around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from ..dit import DiT
from ..dit_config import DiTConfig, config_from
from ..shapes import check_stated, read_shape
from .weights import CheckpointError

Averaging = Literal["ema", "raw"]

# Settings of the published config files under the names of `DiTConfig`; SDTT nests most of them in "model".
SETTINGS = {
    "vocab_size": ("vocab_size",),
    "max_length": ("max_length", "model_length", "length"),
    "hidden_size": ("hidden_size", "hidden_dim"),
    "num_layers": ("num_layers", "n_blocks"),
    "num_heads": ("num_heads", "n_heads"),
    "cond_size": ("cond_size", "cond_dim"),
    "dropout": ("dropout",),
    "time_conditioning": ("time_conditioning",),
}

# What stands beside the network in a training checkpoint of these repositories.
GROUPS = ("backbone.", "student_ema.", "discriminator.", "teacher.")
SCALARS = ("reward_baseline",)

# torch's older spectral norm, under which the authors of DiDi-Instruct trained their head, and today's.
DISCRIMINATOR_HEAD = {
    "output_layer.main.{i}.bias": "head.{i}.bias",
    "output_layer.main.{i}.weight_orig": "head.{i}.parametrizations.weight.original",
    "output_layer.main.{i}.weight_u": "head.{i}.parametrizations.weight.0._u",
    "output_layer.main.{i}.weight_v": "head.{i}.parametrizations.weight.0._v",
}


def denoiser_weights(stored: Mapping[str, Any], *, averaging: Averaging, source: str) -> dict[str, Any]:
    """Weights of a denoiser under `DiT`'s names.

    Args:
        stored: what a file holds: names of the network, with any number of ``backbone.`` before them; or a Lightning
            checkpoint, with ``state_dict`` and, where a moving average was kept, ``ema``.
        averaging: ``"ema"`` takes the moving average of a training checkpoint, ``"raw"`` the weights it was made of.
            A file of plain weights has only one kind.
        source: where they are from, for messages.
    """
    if "state_dict" not in stored:
        return _without_wrappers(stored, source)
    groups = _groups(stored["state_dict"], source)
    if averaging == "ema" and groups["student_ema."]:
        return groups["student_ema."]
    weights = groups["backbone."]
    if averaging == "raw":
        return weights
    if not isinstance(stored.get("ema"), Mapping) or "shadow_params" not in stored["ema"]:
        raise CheckpointError(f'{source} holds no moving average; take its plain weights with averaging="raw"')
    return _averaged(weights, stored["ema"]["shadow_params"], source)


def discriminator_weights(stored: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Weights of the authors' discriminator under the names of ``Discriminator(final_norm=False)``."""
    if "state_dict" in stored:
        stored = _groups(stored["state_dict"], source)["discriminator."]
        if not stored:
            raise CheckpointError(f"{source} holds no discriminator")
    renamed = {old.format(i=i): new.format(i=i) for i in (0, 2) for old, new in DISCRIMINATOR_HEAD.items()}
    plain = _without_wrappers(stored, source)
    return {renamed.get(name, f"backbone.{name}"): value for name, value in plain.items()}


def _groups(state: Any, source: str) -> dict[str, dict[str, Any]]:
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{source} has a state_dict that is a {type(state).__name__}")
    unknown = [str(name) for name in state if not str(name).startswith(GROUPS) and name not in SCALARS]
    if unknown:
        raise CheckpointError(f"{source} has weights of none of the known codes: {', '.join(unknown[:5])}")
    return {
        group: _without_wrappers({name: state[name] for name in state if name.startswith(group)}, source, group)
        for group in GROUPS
    }


def _without_wrappers(stored: Mapping[str, Any], source: str, group: str = "") -> dict[str, Any]:
    """Without the group that they belong to, the ``backbone.`` of Lightning modules and hub classes (twice, where one
    held the other), and the ``_orig_mod.`` of compiled modules."""
    plain: dict[str, Any] = {}
    for name, value in stored.items():
        short = str(name).removeprefix(group).replace("_orig_mod.", "")
        while short.startswith("backbone."):
            short = short.removeprefix("backbone.")
        if short in plain:
            raise CheckpointError(f"{source} has {short} twice, the second time as {name}")
        plain[short] = value
    return plain


def _averaged(weights: Mapping[str, Any], shadows: Any, source: str) -> dict[str, Any]:
    """Replace parameters by their moving averages, which are stored in the network's order and without names."""
    names = parameter_order(read_shape(weights, source=source)["num_layers"])
    if not isinstance(shadows, Sequence) or len(shadows) != len(names):
        count = len(shadows) if isinstance(shadows, Sequence) else type(shadows).__name__
        raise CheckpointError(f"{source} has moving averages of {count} parameters; the network has {len(names)}")
    for name, shadow in zip(names, shadows, strict=True):
        raw = weights.get(name)
        if not isinstance(shadow, Tensor) or (isinstance(raw, Tensor) and shadow.shape != raw.shape):
            shape = tuple(shadow.shape) if isinstance(shadow, Tensor) else type(shadow).__name__
            raise CheckpointError(f"{source}: the moving average in the place of {name} has shape {shape}")
    return {**weights, **{name: shadow for name, shadow in zip(names, shadows, strict=True) if name in weights}}


def parameter_order(num_layers: int) -> list[str]:
    """Names of the network's parameters in the order in which these repositories register them, and `DiT` too."""
    smallest = DiT(DiTConfig(vocab_size=1, max_length=1, hidden_size=2, num_layers=1, num_heads=1, cond_size=1))
    names = [name for name, _ in smallest.named_parameters()]
    first = names.index(next(name for name in names if name.startswith("blocks.0.")))
    block = [name.removeprefix("blocks.0.") for name in names if name.startswith("blocks.0.")]
    blocks = [f"blocks.{i}.{name}" for i in range(num_layers) for name in block]
    return names[:first] + blocks + names[first + len(block) :]


def config_of(
    weights: Mapping[str, Any], stated: Mapping[str, Any] | None, *, source: str, prefix: str = "", **overrides: Any
) -> DiTConfig:
    """The network's shape, read from its weights; a config file adds what weights do not determine, and must agree.

    Args:
        weights: under our names.
        stated: the config file's contents, or None.
        source: for messages.
        prefix: of the network among the weights.
        **overrides: fields of `DiTConfig`, which win over the file; None leaves a field alone.

    Raises:
        CheckpointError: if weights that determine the shape are missing, or the config file contradicts them or has
            values that cannot be.
    """
    read = read_shape(weights, source=source, prefix=prefix)
    settings = _stated(stated or {})
    check_stated(settings, read, source=source)
    chosen = {name: value for name, value in overrides.items() if value is not None}
    return config_from({**settings, **read, **chosen})


def _stated(config: Mapping[str, Any]) -> dict[str, Any]:
    nested = config.get("model")
    flat = {**config, **(nested if isinstance(nested, Mapping) else {})}
    found = {}
    for field, names in SETTINGS.items():
        for name in names:
            if flat.get(name) is not None:
                found[field] = flat[name]
                break
    return found
