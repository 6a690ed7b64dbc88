"""Trained networks by name or path: our own, MDLM's, DUO's, SDTT's, DiDi-Instruct's, and those of Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from huggingface_hub.constants import CONFIG_NAME

from ...process import Denoiser
from ..adapters import AUTO
from ..call_signature import HUB_MDLM, Attention
from ..discriminator import Discriminator, TrunkDiscriminator
from ..dit import DiT
from ..noise import check_noise
from ..wrappers import refuse_uniform_state
from .adapter_files import load_adapters
from .discriminator_files import trunk_discriminator_from
from .hub import (
    DISCRIMINATOR_CONFIG_FILE,
    DISCRIMINATOR_FILE,
    STUDENT_FILE,
    find_file,
    network_from,
    nothing_at,
    stored_fingerprint,
)
from .hugging_face import load_from_transformers
from .layouts import Averaging, config_of, denoiser_weights, discriminator_weights
from .pickled import PICKLED_FILE
from .weights import PICKLE_SUFFIXES, SAFETENSORS_SUFFIX, build, read_json, read_weights


def load_denoiser(
    name_or_path: str | Path,
    *,
    averaging: Averaging = "ema",
    max_length: int | None = None,
    time_conditioning: bool | None = None,
    dropout: float | None = None,
    bf16_blocks: bool = False,
    attention: Attention | None = None,
    shifted: bool | None = None,
    head: str | None = AUTO,
    trust_remote_code: bool = False,
    **hub: Any,
) -> Denoiser:
    """Load a denoiser from a folder, a file or the hub, in fp32 and evaluation mode.

    It is a `DiT`, a Hugging Face model behind `as_denoiser`, or one with the matrices that `save_adapters` wrote.

    Args:
        name_or_path: a name on the hub, a folder, or a file: ``.safetensors``, or a Lightning ``.ckpt`` of the MDLM,
            DUO or DiDi-Instruct code. See docs/reference/models.md for the layouts and their key maps.
        averaging: of a training checkpoint, ``"ema"``: the moving average, with which these repositories evaluate;
            ``"raw"``: the weights themselves. Files of plain weights have one kind only.
        max_length: longest sequence, in tokens; None takes the config file's, or 1024 where there is none.
        time_conditioning: whether the network is passed the time; None takes the config file's, or no, as in MDLM.
        dropout: in training; None takes the config file's, or 0.1.
        bf16_blocks: see `DiTConfig`.
        attention: of Hugging Face models, see `as_denoiser`; None takes what `WrappedDenoiser.save_pretrained` wrote,
            or what is known of such models. Causal models need it.
        shifted: likewise.
        head: likewise.
        trust_remote_code: whether Python from the repository may be run, for Hugging Face models that bring their own,
            such as LLaDA and Dream. Never needed for the others.
        **hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

    Raises:
        FileNotFoundError: if there is nothing of that name.
        CheckpointError: if a file is damaged, hostile, or does not hold exactly the weights of such a network.
        ValueError: if the model brings code of its own without ``trust_remote_code``, is causal and ``attention`` was
            not given, is a uniform-state model by its config file or the settings in its ``.ckpt``, such as DUO, or is
            a `DiT` and one of the last three arguments is given. A ``.ckpt`` that does not say its noise is warned of.

    Examples:
        >>> bert.save_pretrained("bert")
        >>> denoiser = load_denoiser("bert")  # Or a name on the hub.
        >>> torch.allclose(denoiser(x_t, t), as_denoiser(bert)(x_t, t))
        True
    """
    overrides: dict[str, Any] = {
        "max_length": max_length,
        "time_conditioning": time_conditioning,
        "dropout": dropout,
        "bf16_blocks": bf16_blocks or None,
    }
    called: dict[str, Any] = {} if head == AUTO else {"head": head}
    called |= {name: each for name, each in (("attention", attention), ("shifted", shifted)) if each is not None}
    if Path(name_or_path).is_file():
        stated, file = _config_beside(Path(name_or_path), CONFIG_NAME), Path(name_or_path)
        beside = file.with_name(CONFIG_NAME)
        _refuse_uniform(str(name_or_path), read_json(beside) if beside.is_file() else None)
    else:
        _check_exists(name_or_path)
        stated = _config(name_or_path, CONFIG_NAME, hub)
        _refuse_uniform(str(name_or_path), stated)
        if stated is not None and _is_transformers(stated):
            return load_from_transformers(str(name_or_path), stated, called, trust_remote_code, hub)
        if stated is None:
            base = partial(load_denoiser, trust_remote_code=trust_remote_code)
            adapted = load_adapters(name_or_path, base, hub)
            if adapted is not None:
                return cast(Denoiser, adapted)
        file = _weights_file(name_or_path, (STUDENT_FILE, PICKLED_FILE), hub)
    if called:
        raise ValueError(f"{name_or_path} is no Hugging Face model: leave out {', '.join(called)}")
    stored = read_weights(file)
    if stated is not None and "num_layers" in stated and "cond_size" in stated:
        config = {**stated, **{name: value for name, value in overrides.items() if value is not None}}
        made = network_from(DiT, {"config": config}, stored, source=str(file))
        made.tokenizer_fingerprint = stored_fingerprint(name_or_path, **hub)
        return made
    if "state_dict" in stored:
        check_noise(stored, source=str(file))
    weights = denoiser_weights(stored, averaging=averaging, source=str(file))
    shape = config_of(weights, stated, source=str(file), **overrides)
    made = build(lambda: DiT(shape), weights, source=str(file))
    made.tokenizer_fingerprint = stored_fingerprint(name_or_path, **hub)
    return made


def transformers_config(name_or_path: str | Path, **hub: Any) -> dict[str, Any] | None:
    """The ``config.json`` of a Hugging Face model; None where there is a network of another kind, or nothing.

    Raises:
        OSError: if the hub cannot be reached.
        CheckpointError: if the file is no JSON object.
    """
    if Path(name_or_path).is_file():
        return None
    stated = _config(name_or_path, CONFIG_NAME, hub)
    return stated if stated is not None and _is_transformers(stated) else None


def load_discriminator(
    name_or_path: str | Path,
    *,
    base: Denoiser | str | Path | None = None,
    trainable_blocks: int | None = None,
    max_length: int | None = None,
    time_conditioning: bool = True,
    bf16_blocks: bool = False,
    **hub: Any,
) -> TrunkDiscriminator:
    """A discriminator: one that `save_distilled` or its own ``save_pretrained`` wrote, or the authors' own.

    The authors' network (``discriminator.safetensors`` of their repository on the hub, or the ``discriminator.`` part
    of their ``.ckpt``) has no output norm, keeps its spectral norm under torch's older names, and is passed the true
    sigma, although the denoiser that it grew from is not.

    Args:
        name_or_path: a name on the hub, a folder, or a file.
        base: of one that is no `Discriminator`: the model that its trunk started from, or its name, as `load_denoiser`
            takes it; None takes the name that was saved. With a model given, frozen weights are shared.
        trainable_blocks: of a `Discriminator`: how many of the last blocks can be trained further; None takes what was
            saved, or 4.
        max_length: of the authors' network, in tokens; None is 1024.
        time_conditioning: whether the authors' network is passed sigma. Our own know it themselves.
        bf16_blocks: of the authors' network; see `DiTConfig`.
        **hub: see `load_denoiser`.

    Returns:
        A `Discriminator` on a `DiT`, else a `TrunkDiscriminator`; in evaluation mode.

    Raises:
        FileNotFoundError: if there is nothing of that name.
        CheckpointError: see `load_denoiser`.
        ValueError: if a base is needed and neither given nor saved, or given and not needed.

    Examples:
        >>> save_distilled("student", student, discriminator)
        >>> load_discriminator("student")(x_t, t).shape
        torch.Size([8, 16])
    """
    if Path(name_or_path).is_file():
        file = Path(name_or_path)
        stated = _config_beside(file, DISCRIMINATOR_CONFIG_FILE) if file.name == DISCRIMINATOR_FILE else None
    else:
        _check_exists(name_or_path)
        stated = _config(name_or_path, DISCRIMINATOR_CONFIG_FILE, hub)
        own = _config(name_or_path, CONFIG_NAME, hub)
        if stated is None and own is not None and "trainable_blocks" in own:
            stated, file = own, _weights_file(name_or_path, (STUDENT_FILE,), hub)
        else:
            file = _weights_file(name_or_path, (DISCRIMINATOR_FILE,), hub)
    stored = read_weights(file)
    if stated is not None and isinstance(stated.get("trunk"), Mapping):
        if trainable_blocks is not None:
            raise ValueError(
                f"the discriminator in {file} has the blocks that it was saved with: leave trainable_blocks out"
            )
        model = load_denoiser(base) if isinstance(base, str | Path) else base
        return trunk_discriminator_from(stated, stored, model, load_denoiser, source=str(file))
    if base is not None:
        raise ValueError(f"the discriminator in {file} holds all of its weights: leave base out")
    if stated is not None:
        chosen = {} if trainable_blocks is None else {"trainable_blocks": trainable_blocks}
        return network_from(Discriminator, {**stated, **chosen}, stored, source=str(file))
    weights = discriminator_weights(stored, source=str(file))
    shape = config_of(
        weights,
        None,
        source=str(file),
        prefix="backbone.",
        max_length=max_length,
        time_conditioning=time_conditioning,
        bf16_blocks=bf16_blocks,
    )
    blocks = min(4, shape.num_layers) if trainable_blocks is None else trainable_blocks
    return build(lambda: Discriminator(shape, blocks, final_norm=False), weights, source=str(file))


def _check_exists(name_or_path: str | Path) -> None:
    path = Path(name_or_path)
    is_file_name = path.suffix in (SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES)
    if (path.is_absolute() or len(path.parts) > 2 or is_file_name) and not path.exists():
        raise FileNotFoundError(nothing_at(name_or_path))


def _config(name_or_path: str | Path, filename: str, hub: Mapping[str, Any]) -> dict[str, Any] | None:
    file = find_file(name_or_path, filename, **hub)
    return None if file is None else read_json(file)


def _config_beside(file: Path, filename: str) -> dict[str, Any] | None:
    beside = file.with_name(filename)
    return read_json(beside) if file.suffix == SAFETENSORS_SUFFIX and beside.is_file() else None


def _weights_file(name_or_path: str | Path, names: tuple[str, ...], hub: Mapping[str, Any]) -> Path:
    for name in names:
        file = find_file(name_or_path, name, **hub)
        if file is not None:
            return file
    raise FileNotFoundError(f"no {' and no '.join(names)} at {name_or_path}")


def _refuse_uniform(name: str, stated: Mapping[str, Any] | None) -> None:
    config = stated or {}
    architectures = config.get("architectures")
    classes = architectures if isinstance(architectures, list) else []
    refuse_uniform_state(name, config.get("model_type"), config.get("diffusion"), *classes)


def _is_transformers(config: Mapping[str, Any]) -> bool:
    of_mdlm = config.get("model_type") in HUB_MDLM or "n_blocks" in config or isinstance(config.get("model"), Mapping)
    return isinstance(config.get("model_type"), str) and not of_mdlm
