"""Files of weights: read without running anything in them, checked by name before a single number is used."""

from __future__ import annotations

import json
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

SAFETENSORS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
HEADER_LIMIT = 4_000_000  # bytes; names and shapes of 40 000 tensors
PICKLE_LIMIT = 64_000_000  # bytes of data.pkl, which names the tensors and holds none of their numbers
INSTRUCTIONS_LIMIT = 1_000_000  # of data.pkl; a network of 24 blocks and its optimiser has 100 000, a tokenizer as many
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# What training frameworks store beside the weights: settings, tokenisers, progress. Nothing of it is imported or
# called; each name is read as an `Inert`. Any other name means that the file wants something run: it is refused.
INERT_MODULES = (
    "omegaconf",
    "transformers",
    "tokenizers",
    "lightning",
    "lightning_fabric",
    "pytorch_lightning",
    "torchmetrics",
    "numpy",
    "pathlib",
    "typing",
    "dataloader",  # the research repositories' own tokenisers
)
INERT_NAMES = (
    *("argparse.Namespace", "collections.defaultdict", "functools.partial"),
    *(f"builtins.{name}" for name in ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "object", "str")),
    *("builtins.tuple", "builtins.type"),
)


class CheckpointError(ValueError):
    """A file that does not hold the weights it should: damaged, hostile, or of another network."""


class Inert:
    """Stands where a pickle names a class that is not imported; takes anything, and does nothing with it.

    Attributes:
        state: what the pickle would have the object made of; None if there is none.
    """

    state: Any = None

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_safetensors(file: str | Path) -> dict[str, Tensor]:
    """Tensors by name, mapped from disk."""
    file = Path(file)
    check_header(file)
    try:
        return load_file(file)
    except Exception as error:
        raise CheckpointError(f"{file} is damaged: {error}; fetch or write it again") from error


def check_header(file: Path) -> None:
    """Compare the length that a safetensors file declares for its header with its own, and with what is believed."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
    if len(start) < 8:
        raise CheckpointError(f"{file} is cut short: {size} bytes hold no safetensors header")
    (header,) = struct.unpack("<Q", start)
    if header > HEADER_LIMIT:
        raise CheckpointError(
            f"{file} is no safetensors file: it declares a header of {header} bytes, more than {HEADER_LIMIT}"
        )
    if header + 8 > size:
        raise CheckpointError(f"{file} is cut short: a header of {header} bytes in a file of {size}")


def read_pickle(file: str | Path) -> dict[str, Any]:
    """What `torch.save` wrote, by ``torch.load(weights_only=True)``; settings stored beside the weights become
    `Inert`."""
    file = Path(file)
    _check_archive(file)
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
        unknown = sorted(name for name in names if not _is_inert(name))
        if unknown:
            raise CheckpointError(f"{file} names code that is not weights: {_some(unknown)}; nothing of it was run")
        with torch.serialization.safe_globals([_stand_in(name) for name in names]):
            payload = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{file} is damaged, or no checkpoint of tensors: {error}") from error
    if not isinstance(payload, Mapping):
        raise CheckpointError(f"{file} holds a {type(payload).__name__}, not a dictionary of tensors")
    return dict(payload)


def _check_archive(file: Path) -> None:
    with file.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            raise CheckpointError(f"{file} is no zip archive, as torch.save writes since 1.6; save it again")
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    pickles = [record for record in records if record.filename.endswith("data.pkl")]
    for record in pickles:
        if record.file_size > PICKLE_LIMIT:
            raise CheckpointError(f"{file} has a {record.filename} of {record.file_size} bytes, over {PICKLE_LIMIT}")
    if packed := [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]:
        raise CheckpointError(f"{file} is compressed, as torch.save writes none: {_some(packed)}")
    for record in pickles:
        if _count_instructions(file, record) > INSTRUCTIONS_LIMIT:
            raise CheckpointError(
                f"{file}: {record.filename} has over {INSTRUCTIONS_LIMIT} instructions; no network has"
            )


def _count_instructions(file: Path, record: zipfile.ZipInfo) -> int:
    """Of a pickle, at most one more than are allowed; none of them is followed."""
    try:
        with zipfile.ZipFile(file) as archive:
            pickled = archive.read(record)
        return sum(1 for _ in islice(pickletools.genops(pickled), INSTRUCTIONS_LIMIT + 1))
    except Exception as error:  # Of whatever kind the damage leads to.
        raise CheckpointError(f"{file} is damaged: {error}") from error


def _is_inert(name: str) -> bool:
    return name in INERT_NAMES or any(name.startswith(f"{module}.") for module in INERT_MODULES)


def _stand_in(name: str) -> type[Inert] | Callable[..., Any]:
    module, _, qualname = name.rpartition(".")
    if name == "collections.defaultdict":  # items may be set only on real dictionaries
        return _named(lambda *_: {}, module, qualname)
    return type(qualname, (Inert,), {"__module__": module, "__qualname__": qualname})


def _named(function: Callable[..., Any], module: str, qualname: str) -> Callable[..., Any]:
    function.__module__, function.__qualname__ = module, qualname
    return function


def read_weights(file: str | Path) -> dict[str, Any]:
    """A dictionary of tensors, or a training checkpoint that contains one, by the file's suffix."""
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"no weights at {file}")
    if file.suffix == SAFETENSORS_SUFFIX:
        return dict(read_safetensors(file))
    if file.suffix in PICKLE_SUFFIXES:
        return read_pickle(file)
    raise CheckpointError(f"{file} ends neither in {SAFETENSORS_SUFFIX} nor in one of {', '.join(PICKLE_SUFFIXES)}")


def read_json(file: str | Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        read = json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(read, dict):
        raise CheckpointError(f"{file} holds a {type(read).__name__}, not a JSON object")
    return read


def check_weights(module: nn.Module, weights: Mapping[str, Any], *, source: str) -> None:
    """Compare names, shapes and dtypes with a module's own; floating-point weights may have any of four precisions."""
    own = module.state_dict()
    problems = []
    if missing := [name for name in own if name not in weights]:
        problems.append(f"missing: {_some(missing)}")
    if unknown := [name for name in weights if name not in own]:
        problems.append(f"unknown: {_some(unknown)}")
    if wrong := [
        difference for name in own if name in weights and (difference := _difference(name, own[name], weights[name]))
    ]:
        problems.append("; ".join(wrong[:5]))
    if problems:
        raise CheckpointError(f"{source} does not hold the weights of a {type(module).__name__}: {'; '.join(problems)}")


def _difference(name: str, own: Tensor, given: Any) -> str:
    if not isinstance(given, Tensor):
        return f"{name} is a {type(given).__name__}, not a tensor"
    if unreal := _unreal(given):
        return f"{name} {unreal}"
    if given.shape != own.shape:
        return f"{name} has shape {tuple(given.shape)}, not {tuple(own.shape)}"
    if given.dtype != own.dtype and not (own.dtype in FLOATS and given.dtype in FLOATS):
        return f"{name} has dtype {given.dtype}, not {own.dtype}"
    return ""


def _unreal(given: Tensor) -> str:
    """What keeps a tensor from being an array of numbers that are all in the file."""
    if given.layout != torch.strided or given.is_quantized:
        return f"is a sparse or quantised tensor ({given.layout})"
    if given.is_meta:
        return "has a shape and no numbers (meta device)"
    held = given.untyped_storage().nbytes()
    if given.numel() * given.element_size() > held:
        return f"claims {given.numel()} numbers, of which the file holds {held} bytes"
    return ""


def check_real(given: Tensor, name: str, *, source: str) -> None:
    """Refuse sparse, quantised and meta tensors, and those that repeat few numbers to claim many."""
    if unreal := _unreal(given):
        raise CheckpointError(f"{source}: {name} {unreal}")


def build(make: Callable[[], Module], weights: Mapping[str, Any], *, source: str) -> Module:
    """The module that ``make`` constructs, with these weights, in fp32 and evaluation mode; checked before memory is
    taken for it.

    Raises:
        CheckpointError: see `check_weights`; or if a weight is not finite.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        module = make()
    check_weights(module, weights, source=source)
    held = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in weights.values()}
    if (claimed := sum(value.numel() * value.element_size() for value in weights.values())) > 2 * sum(held.values()):
        raise CheckpointError(f"{source}: weights of {claimed} bytes share {sum(held.values())} bytes of the file")
    if broken := [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]:
        raise CheckpointError(f"{source} has weights that are not finite: {_some(broken)}")
    own = module.state_dict()
    # Copied out of the mapped file, so that training does not write into it, and in the module's own precision.
    state = {name: value.to(own[name].dtype, copy=True) for name, value in weights.items()}
    module.load_state_dict(state, assign=True)
    return module.eval()


def load_part(module: nn.Module, own: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, source: str) -> None:
    """Load weights of a part of a module, strictly.

    Args:
        module: changed in place.
        own: tensors of its state that the part consists of, by name.
        weights: of the file.
        source: name of the file, for errors.

    Raises:
        CheckpointError: naming weights that are missing, unknown, of another shape, or not finite.
    """
    wrong = sorted(own.keys() ^ weights.keys())
    wrong += [name for name, value in own.items() if name in weights and value.shape != weights[name].shape]
    if wrong:
        raise CheckpointError(f"{source} is of another network than this {type(module).__name__}: {_some(wrong)}")
    if broken := [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]:
        raise CheckpointError(f"{source} has weights that are not finite: {_some(broken)}")
    module.load_state_dict(dict(weights), strict=False)


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
