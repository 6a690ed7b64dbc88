"""Low-rank students as files: what was trained, over a base model by name or folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from ..lora import add_lora, has_lora, lora_settings, lora_weights
from ..step_conditioning import step_conditioned
from ..wrapped_denoiser import WrappedDenoiser
from .hub import find_file
from .weights import CheckpointError, load_part, read_json, read_safetensors

ADAPTERS_FILE = "adapters.safetensors"
ADAPTERS_CONFIG_FILE = "adapters.json"


def save_adapters(directory: str | Path, student: nn.Module, base: str | Path) -> None:
    """Write the low-rank matrices of a student, and its embedding of the step, without the weights below them.

    `load_denoiser` reads the folder back and loads the base, too.

    Args:
        directory: made if it is not there.
        student: with low-rank matrices, of `make_networks` with a `SharedBase` or of `add_lora`.
        base: the model below them, by folder or name on the hub, as `load_denoiser` takes it.

    Raises:
        ValueError: if the student has no low-rank matrices.

    Examples:
        >>> bert.save_pretrained("bert")
        >>> networks = make_networks(as_denoiser(bert), sharing=SharedBase(rank=2), step_conditioning=True)
        >>> save_adapters("student", networks.student, base="bert")
        >>> load_denoiser("student").accepts_step
        True
    """
    if not has_lora(student):
        raise ValueError(f"the {type(student).__name__} has no low-rank matrices: save it by its save_pretrained")
    config = {
        **described_base(base, student),
        "step_conditioning": bool(getattr(student, "accepts_step", False)),
        **lora_settings(student),
    }
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: value.cpu().contiguous() for name, value in lora_weights(student).items()}
    save_file(weights, directory / ADAPTERS_FILE, metadata={"format": "pt"})
    (directory / ADAPTERS_CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_adapters(name_or_path: str | Path, load_base: Callable[..., Any], hub: Mapping[str, Any]) -> Any:
    """The student that `save_adapters` wrote, in evaluation mode; None where there is none."""
    stated = find_file(name_or_path, ADAPTERS_CONFIG_FILE, **hub)
    if stated is None:
        return None
    config, file = read_json(stated), find_file(name_or_path, ADAPTERS_FILE, **hub)
    if file is None:
        raise FileNotFoundError(f"no {ADAPTERS_FILE} at {name_or_path}, beside its {ADAPTERS_CONFIG_FILE}")
    try:
        student = base_of(config, load_base)
        student = step_conditioned(student) if config["step_conditioning"] else student
        add_lora(student, rank=config["rank"], alpha=config["alpha"], targets=config["targets"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{stated} describes no student: {error!r}") from error
    load_part(student, lora_weights(student), read_safetensors(file), source=str(file))
    return student.eval()


def described_base(base: str | Path, network: nn.Module) -> dict[str, Any]:
    """What a JSON file says of the model below trained weights.

    Args:
        base: folder, or name on the hub.
        network: on that model; how the model is called is read from it.
    """
    wrapped = [module.call_signature for module in network.modules() if isinstance(module, WrappedDenoiser)]
    return {"base": str(base), "called": asdict(wrapped[0]) if wrapped else None}


def base_of(config: Mapping[str, Any], load_base: Callable[..., Any]) -> Any:
    """The model that `described_base` named.

    Args:
        config: content of the JSON file.
        load_base: called with the base, and with how it is called where that was saved.

    Raises:
        KeyError: if it names none.
    """
    called = config.get("called") or {}
    given = {name: called[name] for name in ("attention", "shifted", "head") if name in called}
    return load_base(config["base"], **given)
