"""A student and its discriminator in one folder, or in one repository of the hub."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from safetensors.torch import save_file
from torch import nn

from ..discriminator import Discriminator, TrunkDiscriminator
from ..lora import has_lora, merge_lora, refuse_unmerged
from .card import ModelFacts, model_card
from .hub import (
    CARD_FILE,
    DISCRIMINATOR_CONFIG_FILE,
    DISCRIMINATOR_FILE,
    FINGERPRINT_FILE,
    Fingerprinted,
    HubNetwork,
    fingerprint_of,
    network_config,
    write_json,
)


def save_distilled(
    directory: str | Path,
    student: nn.Module,
    discriminator: TrunkDiscriminator | None = None,
    *,
    base: str | Path | None = None,
    facts: ModelFacts | None = None,
    tokenizer: Fingerprinted | None = None,
) -> None:
    """A student and its discriminator in one folder, under the names by which the authors of DiDi-Instruct publish:
    ``model.safetensors`` with ``config.json``, ``discriminator.safetensors`` with ``discriminator.json``, one card; and
    ``tokenizer_fingerprint.json``, where the tokenizer is known.

    Args:
        directory: made if it is not there.
        student: a network of this library, or any with ``save_pretrained``: a model behind `as_denoiser`, with its
            embedding of the step or without; low-rank matrices are folded into a copy.
        discriminator: on a trunk of any kind, or None. Of one that is no `Discriminator`, what was trained is written;
            see `TrunkDiscriminator.save_pretrained`.
        base: of such a discriminator: the model that its trunk started from, by folder or name on the hub; None where
            `load_discriminator` is to be given it.
        facts: what the card states.
        tokenizer: whose ids the student reads; None takes the fingerprint that the student was loaded with, if any.

    Raises:
        ValueError: if a `Discriminator` has LoRA weights that were not merged, or the tokenizer has another number of
            entries than the student classes.
        TypeError: if the student has no ``save_pretrained``, or the discriminator is no `TrunkDiscriminator`.

    Examples:
        >>> save_distilled("student", student, facts=ModelFacts(method="DiDi-Instruct", license="mit"))
        >>> load_denoiser("student").config.vocab_size
        9
    """
    if not callable(getattr(student, "save_pretrained", None)):
        raise TypeError(f"a {type(student).__name__} has no save_pretrained: wrap it by as_denoiser, or give a DiT")
    if discriminator is not None and not isinstance(discriminator, TrunkDiscriminator):
        raise TypeError(f"a {type(discriminator).__name__} is no TrunkDiscriminator: leave it out")
    if isinstance(discriminator, Discriminator):
        refuse_unmerged(discriminator)
    stated = network_config(student).get("vocab_size", getattr(student, "num_classes", None))
    if tokenizer is not None and stated not in (None, tokenizer.vocab_size):
        raise ValueError(
            f"the student has {stated} classes and the tokenizer {tokenizer.vocab_size} entries (mask included); give "
            "the tokenizer that it was trained with"
        )
    whole: Any = merge_lora(copy.deepcopy(student)) if has_lora(student) else student
    if isinstance(whole, HubNetwork):
        whole.save_pretrained(directory, facts=facts if facts is not None else ModelFacts())
    else:
        whole.save_pretrained(directory)
        card = model_card(_kind_of(whole), facts, {"classes": stated})
        (Path(directory) / CARD_FILE).write_text(str(card), encoding="utf-8")
    if tokenizer is not None:
        write_json(Path(directory) / FINGERPRINT_FILE, fingerprint_of(tokenizer))
    if discriminator is None:
        return
    if not isinstance(discriminator, Discriminator):
        discriminator.save_pretrained(directory, base=base)
        return
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in discriminator.state_dict().items()}
    save_file(state, Path(directory) / DISCRIMINATOR_FILE, metadata={"format": "pt"})
    config = json.dumps(network_config(discriminator), sort_keys=True, indent=2)
    (Path(directory) / DISCRIMINATOR_CONFIG_FILE).write_text(config, encoding="utf-8")


def _kind_of(network: nn.Module) -> str:
    """Class of the model inside the library's wrappers."""
    inner: Any = network
    while isinstance(getattr(inner, "denoiser", getattr(inner, "model", None)), nn.Module) and type(
        inner
    ).__module__.startswith("discrete_distill"):
        inner = getattr(inner, "denoiser", None) or inner.model
    return type(inner).__name__


def push_distilled(
    repo_id: str,
    student: nn.Module,
    discriminator: TrunkDiscriminator | None = None,
    *,
    base: str | Path | None = None,
    facts: ModelFacts | None = None,
    tokenizer: Fingerprinted | None = None,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    commit_message: str = "Distilled student",
) -> str:
    """`save_distilled` into a repository of the hub, which is made if it is not there; returns the commit's address."""
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_distilled(folder, student, discriminator, base=base, facts=facts, tokenizer=tokenizer)
        repo_id = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
        return str(
            api.upload_folder(
                repo_id=repo_id, repo_type="model", folder_path=folder, revision=branch, commit_message=commit_message
            )
        )
