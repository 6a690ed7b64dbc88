"""Weights of transformers' older layout, ``pytorch_model.bin``: read without running anything, written as safetensors.

What is then loaded is checked as every other folder is: by names, by shapes, and by size before memory is taken for it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from .hub import CONFIG_FILE, STUDENT_FILE, find_file
from .weights import CheckpointError, check_real, read_pickle

PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX_FILE = f"{PICKLED_FILE}.index.json"


def tensors_of_pickle(file: Path) -> dict[str, Tensor]:
    """The tensors that `torch.save` wrote, by name."""
    stored = read_pickle(file)
    for name, value in stored.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{file} holds a {type(value).__name__} under {name!r}, not a tensor")
        check_real(value, name, source=str(file))
    held = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in stored.values()}
    claimed = sum(value.numel() * value.element_size() for value in stored.values())
    if claimed > 2 * sum(held.values()):
        raise CheckpointError(f"{file}: weights of {claimed} bytes share {sum(held.values())} bytes of the file")
    return stored


@contextmanager
def as_safetensors(name: str, hub: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Inside, the model as a folder of safetensors: itself where it is one, else a copy in a temporary folder, as large
    as the weights.

    Returns:
        Name or folder to load, and the arguments for the hub.
    """
    has_safetensors = any(find_file(name, each, **hub) for each in (STUDENT_FILE, f"{STUDENT_FILE}.index.json"))
    pickled = None if has_safetensors else find_file(name, PICKLED_FILE, **hub)
    if pickled is None:
        if not has_safetensors and find_file(name, PICKLED_INDEX_FILE, **hub) is not None:
            raise FileNotFoundError(
                f"no {STUDENT_FILE} at {name}, whose weights are in several pickled files: load it with transformers "
                "and write it again with save_pretrained(folder), which writes safetensors"
            )
        yield name, hub
        return
    tensors = tensors_of_pickle(pickled)
    config = find_file(name, CONFIG_FILE, **hub)
    if config is None:
        raise FileNotFoundError(f"no {CONFIG_FILE} beside {pickled}; it holds the shape of the model")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(config, Path(folder) / CONFIG_FILE)
        # Copies, since safetensors stores no two tensors in one place.
        copies = {each: value.detach().clone().contiguous() for each, value in tensors.items()}
        save_file(copies, Path(folder) / STUDENT_FILE, metadata={"format": "pt"})
        yield folder, {}
