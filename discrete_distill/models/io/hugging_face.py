"""Models of ``transformers`` by name or folder: compared with their weights before memory is taken for them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ...process import Denoiser
from ..adapters import as_denoiser
from ..call_signature import CallSignature
from ..shapes import ROTARY_BASE, ROUNDING
from ..step_conditioning import STEP_FILE, StepConditioned
from ..wrapped_denoiser import DENOISER_FILE
from .hub import STUDENT_FILE, find_file
from .pickled import as_safetensors
from .weights import CheckpointError, check_header, read_json, read_safetensors

INDEX_FILE = f"{STUDENT_FILE}.index.json"
SLACK = 10_000_000  # numbers that a model computes itself, such as positions


def load_from_transformers(
    name: str, config: Mapping[str, Any], called: Mapping[str, Any], trust_remote_code: bool, hub: Mapping[str, Any]
) -> Denoiser:
    """A model in fp32 and evaluation mode behind `as_denoiser`; from safetensors, or from a ``pytorch_model.bin`` that
    holds tensors alone (not with code of its own).

    Args:
        name: on the hub, or a folder.
        config: its ``config.json``.
        called: arguments of `as_denoiser`, over those of ``denoiser.json``, where there is one.
        trust_remote_code: see `load_denoiser`.
        hub: likewise.
    """
    import transformers

    auto_map, architectures = _code_and_classes(name, config)
    own_code = bool(auto_map) and config["model_type"] not in transformers.CONFIG_MAPPING
    if own_code and not trust_remote_code:
        raise ValueError(
            f"{name} brings code of its own ({', '.join(sorted(auto_map))}): read it, then pass "
            "trust_remote_code=True to have it run"
        )
    stated = {**_stored_convention(name, hub), **called}
    causal = not auto_map and any(each.endswith("ForCausalLM") for each in architectures)
    if causal and "attention" not in stated:
        raise ValueError(
            f'{name} is a {architectures[0]}, which reads from left to right: pass attention="full" if it was trained '
            "to read both ways, and shifted=True if its logits predict the next token"
        )
    auto = transformers.AutoModel
    if any(each.endswith("ForMaskedLM") for each in (*auto_map, *architectures)):
        auto = transformers.AutoModelForMaskedLM
    elif causal or "AutoModelForCausalLM" in auto_map:
        auto = transformers.AutoModelForCausalLM
    if own_code:
        return _with_step_conditioning(
            name, as_denoiser(_load(auto, name, name, trust_remote_code, hub), **stated), hub
        )
    with as_safetensors(name, hub) as (place, source):
        _check_size(auto, name, place, config, source)
        return _with_step_conditioning(
            name, as_denoiser(_load(auto, name, place, trust_remote_code, source), **stated), hub
        )


def _code_and_classes(name: str, config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    auto_map, architectures = config.get("auto_map") or {}, config.get("architectures") or []
    if not isinstance(auto_map, Mapping) or not isinstance(architectures, list):
        raise CheckpointError(f"{name}: its config file names its classes by {auto_map!r} and {architectures!r}")
    return [str(each) for each in auto_map], [str(each) for each in architectures]


def _stored_convention(name: str, hub: Mapping[str, Any]) -> dict[str, Any]:
    file = find_file(name, DENOISER_FILE, **hub)
    if file is None:
        return {}
    try:
        convention = CallSignature(**read_json(file))
    except CheckpointError:
        raise
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file} does not say how a model is called: {error}") from error
    return dict(vars(convention))


def _with_step_conditioning(name: str, denoiser: Denoiser, hub: Mapping[str, Any]) -> Denoiser:
    """The denoiser with its embedding of the step, where one was saved beside it."""
    file = find_file(name, STEP_FILE, **hub)
    if file is None:
        return denoiser
    made = StepConditioned(cast(Any, denoiser))
    try:
        made.load_own_state(read_safetensors(file))
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return made.eval()


def _load(auto: Any, name: str, place: str, trust_remote_code: bool, hub: Mapping[str, Any]) -> nn.Module:
    try:
        model, found = auto.from_pretrained(
            place,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            **hub,
        )
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"the weights of {name} are damaged, or of another shape: {error}") from error
    # transformers would leave these random. Heads that were saved for other tasks may be there too, and are left out.
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(
            f"{name} does not hold the weights of a {type(model).__name__}; missing: {', '.join(missing)}"
        )
    broken = [name for name, value in model.named_parameters() if not bool(torch.isfinite(value).all())]
    if broken:
        raise CheckpointError(f"{name} has weights that are not finite: {', '.join(broken[:5])}")
    _restore_frequencies(model)
    return model.eval()


def _restore_frequencies(model: nn.Module) -> None:
    """Rotary frequencies that lie in the file, as ESM's do, are rounded where the file is in half precision."""
    parameters = getattr(getattr(model, "config", None), "rope_parameters", None) or {}
    base = parameters.get("rope_theta", ROTARY_BASE) if isinstance(parameters, Mapping) else ROTARY_BASE
    for name, stored in model.named_buffers():
        if name.endswith("inv_freq") and stored.dim() == 1:
            exact = torch.tensor([base ** (-i / len(stored)) for i in range(len(stored))])
            if torch.allclose(stored.float().cpu(), exact, rtol=ROUNDING, atol=1e-6):
                stored.copy_(exact)


def _check_size(auto: Any, name: str, place: str, config: Mapping[str, Any], hub: Mapping[str, Any]) -> None:
    """Compare the size that the config file claims with that of the files, on the meta device."""
    import transformers

    files = _weight_files(place, hub)
    names, size = sum(_count_tensors(file) for file in files), sum(file.stat().st_size for file in files)
    for key, value in config.items():
        if "layer" in key and isinstance(value, int) and value > max(names, 1):
            raise CheckpointError(f"{name}: its config file has {key} = {value}; its weights are {names} tensors")
    try:
        made = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False, **hub)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = auto.from_config(made, trust_remote_code=False)
    except OSError:
        raise
    except Exception as error:  # Of whatever kind odd values lead to.
        raise CheckpointError(f"{name}: its config file describes no {auto.__name__}: {error}") from error
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    claimed = sum(each.numel() for each in tensors)
    if claimed > size + SLACK:
        raise CheckpointError(f"{name}: its config file claims {claimed} numbers; its weights are {size} bytes")


def _weight_files(name: str, hub: Mapping[str, Any]) -> list[Path]:
    whole = find_file(name, STUDENT_FILE, **hub)
    if whole is not None:
        return [whole]
    index = find_file(name, INDEX_FILE, **hub)
    if index is None:
        raise FileNotFoundError(f"no {STUDENT_FILE} at {name}")
    places = read_json(index).get("weight_map")
    if not isinstance(places, Mapping):
        raise CheckpointError(f"{index} does not say where the weights are")
    found = {str(each): find_file(name, str(each), **hub) for each in sorted({str(each) for each in places.values()})}
    if missing := [each for each, file in found.items() if file is None]:
        raise FileNotFoundError(f"no {missing[0]} at {name}, which {INDEX_FILE} names")
    return [file for file in found.values() if file is not None]


def _count_tensors(file: Path) -> int:
    check_header(file)
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file} is damaged: {error}") from error
    return len(header) if isinstance(header, dict) else 0
