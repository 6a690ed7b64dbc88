"""Networks that are saved, loaded and published, strictly, with a card that states what was done and measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from huggingface_hub import (
    _CACHED_NO_EXIST,
    ModelCard,
    PyTorchModelHubMixin,
    hf_hub_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn

from ..lora import refuse_unmerged
from ..shapes import check_stated, read_shape
from .card import ModelFacts, model_card
from .weights import CheckpointError, build, read_json, read_safetensors

Network = TypeVar("Network", bound="HubNetwork")


class Fingerprinted(Protocol):
    """A tokenizer with a fingerprint: equal fingerprints mean that every id stands for the same text."""

    @property
    def vocab_size(self) -> int: ...

    def fingerprint(self) -> str: ...


CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
FINGERPRINT_FILE = "tokenizer_fingerprint.json"
STUDENT_FILE = "model.safetensors"
DISCRIMINATOR_FILE = "discriminator.safetensors"
DISCRIMINATOR_CONFIG_FILE = "discriminator.json"
HUB_ARGUMENTS = ("revision", "cache_dir", "force_download", "local_files_only", "token")


class HubNetwork(nn.Module, PyTorchModelHubMixin):
    """A network with `save_pretrained`, `from_pretrained` and `push_to_hub`; every weight by name or not at all.

    Attributes:
        tokenizer_fingerprint: what ``tokenizer_fingerprint.json`` beside its weights holds, so that it is written again
            where the network is saved or pushed; None where there was none.
    """

    tokenizer_fingerprint: dict[str, Any] | None = None

    def save_pretrained(self, save_directory: str | Path, *, facts: ModelFacts | None = None, **kwargs: Any) -> Any:
        """Write ``model.safetensors``, ``config.json`` and a card; see `PyTorchModelHubMixin.save_pretrained`.

        Args:
            save_directory: made if it is not there.
            facts: what the card states; given, a card that is there already is written again.
            **kwargs: of the mixin.

        Raises:
            ValueError: if there are LoRA weights that were not merged.
        """
        if facts is not None:
            (Path(save_directory) / CARD_FILE).unlink(missing_ok=True)
            kwargs["model_card_kwargs"] = {"facts": facts}
        return PyTorchModelHubMixin.save_pretrained(self, save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, *, facts: ModelFacts | None = None, **kwargs: Any) -> str:
        """Save and upload; see `PyTorchModelHubMixin.push_to_hub` for the rest of the arguments."""
        if facts is not None:
            kwargs["model_card_kwargs"] = {"facts": facts}
        return super().push_to_hub(repo_id, **kwargs)

    def generate_model_card(self, *, facts: ModelFacts | None = None, **_: Any) -> ModelCard:
        """The card that is saved beside the weights."""
        return model_card(type(self).__name__, facts, network_config(self))

    def _save_pretrained(self, save_directory: Path) -> None:
        refuse_unmerged(self)
        super()._save_pretrained(save_directory)
        if self.tokenizer_fingerprint is not None:
            write_json(Path(save_directory) / FINGERPRINT_FILE, self.tokenizer_fingerprint)

    @classmethod
    def from_pretrained(cls: type[Network], pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Network:
        """Load strictly; see `PyTorchModelHubMixin.from_pretrained`.

        Raises:
            FileNotFoundError: if a file is missing, or the name is neither a folder nor one that the hub could have.
            CheckpointError: if a file is damaged, hostile, or of another network.
        """
        config = Path(pretrained_model_name_or_path) / CONFIG_FILE
        if config.is_file():
            read_json(config)
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except HFValidationError as error:
            raise FileNotFoundError(nothing_at(pretrained_model_name_or_path)) from error

    @classmethod
    def _from_pretrained(
        cls: type[Network],
        *,
        model_id: str,
        map_location: str | torch.device = "cpu",
        **arguments: Any,
    ) -> Network:
        for old in ("proxies", "resume_download"):  # of earlier releases of the mixin
            arguments.pop(old, None)
        hub = {name: arguments.pop(name) for name in HUB_ARGUMENTS if name in arguments}
        # Strict, unlike the mixin: a weight that is missing must not stay random in silence.
        file = find_file(model_id, STUDENT_FILE, **hub)
        if file is None:
            raise FileNotFoundError(f"no {STUDENT_FILE} at {model_id}")
        network = network_from(cls, arguments, read_safetensors(file), source=str(file)).to(map_location)
        network.tokenizer_fingerprint = stored_fingerprint(model_id, **hub)
        return network


def network_from(
    cls: type[Network], arguments: Mapping[str, Any], weights: Mapping[str, Any], *, source: str
) -> Network:
    """A network of this class, from the arguments in its config file and its weights.

    Raises:
        FileNotFoundError: if there was no config file.
        CheckpointError: if it and the weights do not agree.
    """
    shape = arguments.get("config", arguments.get("backbone"))
    if shape is None:
        raise FileNotFoundError(f"no {CONFIG_FILE} beside {source}; it holds the shape of the {cls.__name__}")
    if not isinstance(shape, Mapping) and not is_dataclass(shape):
        raise CheckpointError(f"{source}: its config file has a {type(shape).__name__} where the shape should be")
    stated = shape if isinstance(shape, Mapping) else asdict(cast(Any, shape))
    prefix = "backbone." if "backbone" in arguments else ""
    check_stated(stated, read_shape(weights, source=source, prefix=prefix), source=source)

    def make() -> Network:
        try:
            return cls(**arguments)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{source}: its config file describes no {cls.__name__}: {error}") from error

    return build(make, weights, source=source)


def network_config(network: nn.Module) -> dict[str, Any]:
    """What the mixin writes to ``config.json``."""
    config: Any = getattr(network, "_hub_mixin_config", None) or {}
    return dict(config) if isinstance(config, Mapping) else asdict(config)


def fingerprint_of(tokenizer: Fingerprinted) -> dict[str, Any]:
    """What is written to ``tokenizer_fingerprint.json``."""
    return {"fingerprint": tokenizer.fingerprint(), "vocab_size": tokenizer.vocab_size}


def stored_fingerprint(name_or_path: str | Path, **hub: Any) -> dict[str, Any] | None:
    """What ``tokenizer_fingerprint.json`` of a folder or a repository holds; None where there is none, or the hub
    cannot be reached.

    Raises:
        CheckpointError: if it is no JSON object.
    """
    path = Path(name_or_path)
    try:
        file = find_file(path.parent if path.is_file() else name_or_path, FINGERPRINT_FILE, **hub)
    except (OSError, HfHubHTTPError):
        return None
    return None if file is None else read_json(file)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object."""
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def find_file(name_or_path: str | Path, filename: str, **hub: Any) -> Path | None:
    """A file of a local folder, or of a repository on the hub, downloaded; None where there is none of that name.

    Raises:
        OSError: if the hub, or a repository of that name, cannot be reached; `FileNotFoundError` if the hub could have
            no repository of that name.
    """
    if Path(name_or_path).is_dir():
        file = Path(name_or_path) / filename
        return file if file.is_file() else None
    try:
        return Path(hf_hub_download(repo_id=str(name_or_path), filename=filename, **hub))
    except LocalEntryNotFoundError:
        where = {name: hub.get(name) for name in ("cache_dir", "revision")}
        if try_to_load_from_cache(str(name_or_path), filename, **where) is _CACHED_NO_EXIST:
            return None  # Known from the last request to the hub.
        raise
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise FileNotFoundError(nothing_at(name_or_path)) from error


def nothing_at(name_or_path: str | Path) -> str:
    """Message of the error where neither a file, nor a folder, nor a repository can have this name."""
    return f"nothing at {name_or_path}: give a file, a folder, or a name on the hub such as user/model"
