"""Checkpoints that survive a kill at any moment: written aside, hashed, renamed; damaged ones passed over."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

STATE_FILE = "state.pt"
DIGEST_FILE = "digest.json"


class CheckpointStore:
    """A folder of checkpoints ``step-00001000/``, of which the last ``keep`` stay.

    Args:
        directory: where they are; made on the first save.
        keep: how many of the newest to keep, at least 1.

    Raises:
        ValueError: if ``keep`` is below 1.
    """

    def __init__(self, directory: Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"at least one checkpoint must be kept, got keep = {keep}")
        self.directory = Path(directory)
        self.keep = keep

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state of ``step``; only when all of it is on disk does it get its name."""
        final = self.directory / f"step-{step:08d}"
        aside = self.directory / f".{final.name}.partial"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        torch.save(state, aside / STATE_FILE)
        digest = {"step": step, "sha256": _sha256(aside / STATE_FILE)}
        (aside / DIGEST_FILE).write_text(json.dumps(digest))
        for file in (aside / STATE_FILE, aside / DIGEST_FILE):
            _flush_to_disk(file)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        for old in self._folders()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def load_latest(self, map_location: str | torch.device = "cpu") -> tuple[int, dict[str, Any]] | None:
        """Step and state of the newest undamaged checkpoint, or None. Pickled code is never run."""
        for folder in reversed(self._folders()):
            problem = _problem_with(folder)
            if problem is None:
                state = torch.load(folder / STATE_FILE, map_location=map_location, weights_only=True)
                return int(folder.name.removeprefix("step-")), state
            warnings.warn(f"checkpoint {folder} is damaged ({problem}); trying the one before it", stacklevel=2)
        return None

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.directory.glob("step-*") if path.is_dir())


def _problem_with(folder: Path) -> str | None:
    try:
        digest = json.loads((folder / DIGEST_FILE).read_text())
        if _sha256(folder / STATE_FILE) != digest["sha256"]:
            return "its contents do not match their checksum"
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    return None


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush_to_disk(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
