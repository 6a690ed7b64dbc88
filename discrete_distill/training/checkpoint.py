"""Checkpoints that survive a kill at any moment: written aside, hashed, renamed; damaged ones passed over."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import IO, Any

import torch

from ..checks import check_count
from ..digests import file_digest

NAME = re.compile(r"step-(\d{8,})")
STATE_FILE = "state.pt"
DIGEST_FILE = "digest.json"


class CheckpointStore:
    """A folder of checkpoints ``step-00001000/``, of which the last ``keep`` undamaged ones stay.

    Only folders of exactly such a name are read, counted or removed: copies with other names and links are left alone.

    Args:
        directory: where they are; made on the first save.
        keep: how many of the newest to keep, at least 1.

    Raises:
        ValueError: if ``keep`` is below 1.
        TypeError: if it is not an integer.

    Examples:
        >>> from pathlib import Path
        >>> store = CheckpointStore(Path("checkpoints"), keep=1)
        >>> store.save(100, {"loss": 0.5}).name, store.save(200, {"loss": 0.25}).name
        ('step-00000100', 'step-00000200')
        >>> store.load_latest()
        (200, {'loss': 0.25})
    """

    def __init__(self, directory: Path, *, keep: int = 2) -> None:
        check_count("keep", keep)
        self.directory = Path(directory)
        self.keep = keep
        self._damaged: set[str] = set()

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state of ``step``; only when all of it is on disk does it get its name.

        Raises:
            OSError: if it cannot be written (a full disk, a read-only folder); what was saved before is as it was.
        """
        final = self.directory / f"step-{step:08d}"
        aside = self.directory / f".{final.name}.partial"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            self._write(aside, step, state)
            self._put_in_place(aside, final)
        except (OSError, RuntimeError) as error:  # PyTorch's writer turns a failed write into a RuntimeError.
            shutil.rmtree(aside, ignore_errors=True)
            raise OSError(f"cannot write the checkpoint {final} ({error}); {self._what_is_left()}") from error
        self._damaged.discard(final.name)
        self._remove_old(step)
        return final

    def _remove_old(self, step: int) -> None:
        """Keep the newest whole checkpoints up to ``step``. Later ones could not be resumed from and count for nothing:
        otherwise one damaged file would cost every new checkpoint its place."""
        folders = [folder for folder in self._folders() if _step_of(folder) <= step]
        whole = [folder for folder in folders if folder.name not in self._damaged]
        for old in {*folders} - {*whole[-self.keep :]}:
            shutil.rmtree(old, ignore_errors=True)

    def load_latest(self, map_location: str | torch.device = "cpu") -> tuple[int, dict[str, Any]] | None:
        """Step and state of the newest undamaged checkpoint, or None. Pickled code is never run."""
        self._finish_replacing()
        for folder in reversed(self._folders()):
            problem = _problem_with(folder)
            if problem is None:
                try:
                    state = torch.load(folder / STATE_FILE, map_location=map_location, weights_only=True)
                except Exception as error:  # whatever the reader of pickles raises, an older checkpoint may be whole
                    problem = f"its state cannot be read: {' '.join(str(error).split())[:200]}"
                else:
                    if isinstance(state, dict):
                        return _step_of(folder), state
                    problem = f"its state is of type {type(state).__name__}"
            self._damaged.add(folder.name)
            warnings.warn(f"checkpoint {folder} is damaged ({problem}); trying the one before it", stacklevel=2)
        return None

    def _write(self, folder: Path, step: int, state: dict[str, Any]) -> None:
        with (folder / STATE_FILE).open("wb") as stream:
            hashing = _HashingWriter(stream)
            torch.save(state, hashing)  # type: ignore[arg-type]
        digest = {"step": step, "sha256": hashing.digest.hexdigest()}
        (folder / DIGEST_FILE).write_text(json.dumps(digest))
        for path in (folder / STATE_FILE, folder / DIGEST_FILE, folder):
            _flush_to_disk(path)

    def _put_in_place(self, aside: Path, final: Path) -> None:
        """Rename; a checkpoint of the same step is out of the way for a moment, and found again by
        `_finish_replacing`."""
        replaced = self.directory / f".{final.name}.replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():
            os.replace(final, replaced)
        os.replace(aside, final)
        _flush_to_disk(self.directory)
        shutil.rmtree(replaced, ignore_errors=True)

    def _finish_replacing(self) -> None:
        for replaced in self.directory.glob(".step-*.replaced"):
            final = self.directory / replaced.name.removeprefix(".").removesuffix(".replaced")
            if NAME.fullmatch(final.name) and not final.exists():
                replaced.rename(final)

    def _what_is_left(self) -> str:
        whole = [folder for folder in self._folders() if _problem_with(folder) is None]
        if not whole:
            return "there is none before it"
        return f"the one before it, {whole[-1]}, is whole: make room or choose another folder, and run again to resume"

    def _folders(self) -> list[Path]:
        found = [
            path
            for path in self.directory.glob("step-*")
            if NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
        ]
        return sorted(found, key=_step_of)


class _HashingWriter:
    """Passes what is written on to a stream and hashes it on the way, so that corruption is detected."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.digest = hashlib.sha256()

    def write(self, block: bytes) -> int:
        self.digest.update(block)
        return self.stream.write(block)

    def flush(self) -> None:
        self.stream.flush()


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _problem_with(folder: Path) -> str | None:
    try:
        digest = json.loads((folder / DIGEST_FILE).read_text())
        if not isinstance(digest, dict) or digest.get("step") != _step_of(folder):
            return f"its {DIGEST_FILE} does not name its step"
        if file_digest(folder / STATE_FILE) != digest.get("sha256"):
            return "its contents do not match their checksum"
    except (OSError, ValueError, RecursionError) as error:
        return str(error)
    return None


def _flush_to_disk(path: Path) -> None:
    """Of a file, or of a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
