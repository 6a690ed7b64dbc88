"""Causal language models by folder or hub name, with their tokenizers: strict, and without running code from them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError

from ..digests import files_digest
from ..models.io.pickled import as_safetensors

# Bytes of a safetensors header: more describe millions of tensors, and take minutes to parse.
HEADER_LIMIT = 2**24

# Of one format, as transformers takes the first that is there.
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")


def load_causal_lm(
    name_or_path: str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", **source: Any
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer through transformers.

    Args:
        name_or_path: folder or name on the hub.
        dtype: of the weights.
        device: of the model.
        **source: further arguments of ``from_pretrained``, such as ``gguf_file``.

    Returns:
        Model in evaluation mode, and tokenizer.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    is_folder = Path(name_or_path).is_dir()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False, **source)
        with ExitStack() as stack:
            place = stack.enter_context(as_safetensors(name_or_path, {}))[0] if is_folder else name_or_path
            if is_folder:
                check_claims(Path(place))
            model, found = AutoModelForCausalLM.from_pretrained(
                place, dtype=dtype, trust_remote_code=False, output_loading_info=True, **source
            )
    except (KeyboardInterrupt, SystemExit):
        raise
    except (OSError, HFValidationError) as error:  # transformers before 5 passes on the hub's refusal of a path.
        raise OSError(
            f"judge {name_or_path!r} is neither on disk nor reachable; download it where there is a network and pass "
            "its folder"
        ) from error
    except BaseException as error:  # Damaged files raise errors of a dozen kinds, some of them no `Exception`.
        raise ValueError(
            f"judge {name_or_path!r} cannot be loaded ({type(error).__name__}): {_short(error)}"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"judge {name_or_path!r} lacks weights, which would stay random: {', '.join(missing[:3])}")
    return model.to(device).eval(), tokenizer


def shown_name(name_or_path: str) -> str:
    """Name of a pretrained model in reports: a name on the hub as it is; of a folder, the last part of its path and the
    first digits of the SHA-256 of its weights, since other weights may stand in a folder of one name.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        return name_or_path
    files = next((found for pattern in WEIGHT_PATTERNS if (found := sorted(folder.glob(pattern)))), [])
    return f"{folder.resolve().name}@{files_digest(files)[:8]}"


def end_of_text_of(model: Any, tokenizer: Any, name: str) -> int:
    """Id of the end of text: the tokenizer's, or else the model's."""
    stated = tokenizer.eos_token_id
    if stated is None:
        stated = getattr(model.config, "eos_token_id", None)
        stated = stated[0] if isinstance(stated, list | tuple) and stated else stated
    if not isinstance(stated, int):
        raise ValueError(f"judge {name!r} states no end-of-text token; set eos_token in its tokenizer")
    return stated


def encoder_of(tokenizer: Any) -> Callable[[str], Sequence[int]]:
    """Text to ids, without special tokens: text that spells one is encoded as the characters it is."""
    return lambda text: tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def check_claims(folder: Path) -> None:
    """Compare a config file with the weights beside it, before anything of the claimed size is made.

    Every layer has a tensor and every element a place in the files, so a network with more layers than tensors, or more
    elements than twice those on disk, cannot be filled. Folders without safetensors files are not checked.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        return
    tensors = [shape for file in files for shape in stored_shapes(file)]
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    except Exception as error:  # A config file that is damaged raises errors of many kinds.
        raise ValueError(f"{folder} describes no causal language model: {_short(error)}") from error
    if isinstance(layers, int) and layers > len(tensors):
        raise ValueError(
            f"{folder / 'config.json'} claims {layers} layers, and the weights have {len(tensors)} tensors"
        )
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"{folder} describes no causal language model: {_short(error)}") from error
    claimed = sum(parameter.numel() for parameter in model.parameters())
    held = sum(int(torch.Size(shape).numel()) for shape in tensors)
    if claimed > 2 * held:
        raise ValueError(f"{folder / 'config.json'} claims {claimed} parameters, and the weights have {held}")


def stored_shapes(file: Path) -> list[list[int]]:
    """Shapes of the tensors of a safetensors file, from its header, as far as the file has bytes for them."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        (length,) = struct.unpack("<Q", start) if len(start) == 8 else (size,)
        if length + 8 > size or length > HEADER_LIMIT:
            raise ValueError(f"{file} is damaged: it declares a header of {length} bytes in a file of {size}")
        header = stream.read(length)
    try:
        entries = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        spans = [entry["data_offsets"] for entry in entries]
        shapes = [[int(extent) for extent in entry["shape"]] for entry in entries]
        inside = all(0 <= begin <= end <= size - length - 8 for begin, end in spans)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: its header cannot be read") from error
    if not inside:
        raise ValueError(f"{file} is damaged: its header names bytes beyond its end")
    return shapes


def _short(error: BaseException) -> str:
    """The first sentence of a message that may fill pages."""
    return " ".join(str(error).split())[:200]
