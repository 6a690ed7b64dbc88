"""Text to token streams: documents are read, split, tokenised once into a memory map, and cut to length."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from .assets import BUNDLED, asset
from .tokenizer import TextTokenizer

# Of every twenty documents, in order: which split each goes to. Judge and student never share a document.
SPLIT_PATTERN = (
    "train", "judge", "train", "train", "judge", "train", "train", "judge", "train", "heldout",
    "train", "judge", "train", "train", "judge", "train", "train", "judge", "train", "train",
)  # fmt: skip
SPLITS = ("train", "judge", "heldout")


@dataclass
class TokenStream:
    """Documents of one split, joined by end-of-text tokens: one flat array of ids."""

    ids: np.ndarray
    length: int

    def __post_init__(self) -> None:
        if len(self.ids) < self.length + 1:
            raise ValueError(
                f"a split of {len(self.ids)} tokens is too short for sequences of {self.length}; give more text"
            )

    def crops(self, batch_size: int, *, generator: Generator | None = None) -> Tensor:
        """``batch_size`` windows at uniform offsets, int64 ``[B, L]``."""
        device = "cpu" if generator is None else generator.device
        starts = torch.randint(len(self.ids) - self.length, (batch_size,), generator=generator, device=device)
        return self._windows(starts.tolist())

    def packed(self, limit: int | None = None) -> Tensor:
        """Consecutive windows that do not overlap, evenly thinned to at most ``limit``, int64 ``[N, L]``."""
        count = len(self.ids) // self.length
        kept = np.arange(count) if limit is None or limit >= count else np.linspace(0, count - 1, limit).astype(int)
        return self._windows([int(k) * self.length for k in kept])

    def _windows(self, starts: Iterable[int]) -> Tensor:
        rows = [np.asarray(self.ids[start : start + self.length], dtype=np.int64) for start in starts]
        return torch.from_numpy(np.stack(rows))


def read_documents(source: str) -> list[str]:
    """Documents of the bundled corpus, of a UTF-8 text file (one a line), or of a folder of ``.txt`` files.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if the text is empty or not UTF-8.
    """
    if source == BUNDLED:
        packed = asset("sotu.txt.xz").read_bytes()
        return lzma.decompress(packed).decode("utf-8").splitlines()
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"no text at {source}: give a .txt file, a folder of .txt files, or 'bundled'")
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    documents = [line for file in files for line in _read_text(file).splitlines() if line.strip()]
    if not documents:
        raise ValueError(f"no text in {source}: the file is empty, or the folder holds no .txt file with text")
    return documents


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text (byte {error.start}); convert it first") from error


def split_documents(documents: list[str]) -> dict[str, list[str]]:
    """By document, in a fixed pattern of twenty; a handful of documents is first cut into equal pieces."""
    if len(documents) < 2 * len(SPLIT_PATTERN):
        text = " ".join(documents)
        size = max(1, -(-len(text) // (2 * len(SPLIT_PATTERN))))
        documents = [text[i : i + size] for i in range(0, len(text), size)]
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for index, document in enumerate(documents):
        splits[SPLIT_PATTERN[index % len(SPLIT_PATTERN)]].append(document)
    return splits


def load_streams(source: str, tokenizer: TextTokenizer, length: int, cache_dir: Path) -> dict[str, TokenStream]:
    """Token streams of every split of a text, tokenised once, then memory-mapped from ``cache_dir``."""
    key = _fingerprint(source, tokenizer)
    folder = cache_dir / key
    if not (folder / "done.json").exists():
        _tokenise(source, tokenizer, folder)
    return {name: TokenStream(np.load(folder / f"{name}.npy", mmap_mode="r"), length) for name in SPLITS}


def _tokenise(source: str, tokenizer: TextTokenizer, folder: Path) -> None:
    splits = split_documents(read_documents(source))
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    counts = {}
    for name, documents in splits.items():
        ids = [np.asarray([*row, tokenizer.eos_token_id], dtype=dtype) for row in tokenizer.encode(documents)]
        stream = np.concatenate(ids) if ids else np.zeros(0, dtype)
        counts[name] = len(stream)
        partial = folder / f"{name}.partial.npy"
        np.save(partial, stream)
        os.replace(partial, folder / f"{name}.npy")
    (folder / "done.json").write_text(json.dumps(counts))


def _fingerprint(source: str, tokenizer: TextTokenizer) -> str:
    """Changes when the text, its splitting or the tokenizer does."""
    parts = [repr(SPLIT_PATTERN), tokenizer.fingerprint(), source]
    if source != BUNDLED and Path(source).exists():
        root = Path(source)
        files = sorted(root.rglob("*.txt")) if root.is_dir() else [root]
        parts += [f"{f.resolve()}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
