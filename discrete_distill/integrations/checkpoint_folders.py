"""Folders ``checkpoint-N`` of transformers' Trainer: written aside and renamed, read only where they are whole."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import Tensor, nn

from ..models import merge_lora
from ..models.lora import has_lora

STATE_FILE = "didi_instruct.pt"
TRAINER_STATE_FILE = "trainer_state.json"
WEIGHTS_FILE = "model.safetensors"
UNFINISHED = "unfinished-checkpoint"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoints(run: Path) -> dict[int, Path]:
    """Folders of whole checkpoints by step, in order of steps; torn ones are passed over."""
    found = {}
    for folder in run.iterdir() if run.is_dir() else ():
        name = CHECKPOINT.fullmatch(folder.name)
        if name is not None and trainer_state(folder) is not None and (folder / STATE_FILE).is_file():
            found[int(name[1])] = folder
    return dict(sorted(found.items()))


def trainer_state(folder: Path) -> dict[str, Any] | None:
    """What the Trainer wrote last into a checkpoint; None if it is missing or was cut short."""
    try:
        state = json.loads((folder / TRAINER_STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def publish(unfinished: Path, run: Path, keep: int | None) -> None:
    """Move a finished checkpoint into its place, and remove the oldest beyond ``keep``.

    Args:
        unfinished: folder that holds the finished ``checkpoint-N`` and nothing else.
        run: folder of the checkpoints.
        keep: how many stay; all if None or 0.
    """
    (written,) = unfinished.iterdir()
    place = run / written.name
    shutil.rmtree(place, ignore_errors=True)
    os.replace(written, place)
    shutil.rmtree(unfinished)
    if not keep:
        return
    others = [folder for folder in run.iterdir() if CHECKPOINT.fullmatch(folder.name) and folder != place]
    others.sort(key=lambda folder: folder.stat().st_mtime)
    for folder in others[: max(len(others) + 1 - keep, 0)]:
        shutil.rmtree(folder)


def without_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state in which every tensor stands once, under the first of the names that share it."""
    seen, kept = set(), {}
    for name, value in state.items():
        where = (value.device, value.data_ptr(), value.shape, value.stride())
        if value.numel() and where in seen:
            continue
        seen.add(where)
        kept[name] = value.contiguous()
    return kept


def save_network(network: nn.Module, directory: str | Path) -> None:
    """Write a network for use: low-rank weights merged, by its own ``save_pretrained`` where it has one, else
    ``model.safetensors`` alone (read back by ``safetensors.torch.load_model``)."""
    if has_lora(network):
        network = merge_lora(copy.deepcopy(network))
    save_pretrained: Any = getattr(network, "save_pretrained", None)
    if callable(save_pretrained):
        save_pretrained(directory)
        return
    Path(directory).mkdir(parents=True, exist_ok=True)
    save_model(network, str(Path(directory) / WEIGHTS_FILE))
