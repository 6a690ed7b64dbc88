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

from ..checks import check_count
from .assets import BUNDLED, asset
from .fasta import is_fasta, read_fasta
from .tokenizer import TextTokenizer

# Of every twenty documents, in order: which split each goes to. Judge and student never share a document.
SPLIT_PATTERN = (
    "train", "judge", "train", "train", "judge", "train", "train", "judge", "train", "heldout",
    "train", "judge", "train", "train", "judge", "train", "train", "judge", "train", "train",
)  # fmt: skip
SPLITS = ("train", "judge", "heldout")


@dataclass(kw_only=True)
class DataConfig:
    """Text and its tokens.

    Args:
        source: 'bundled', a UTF-8 text file (one document a line), a folder of .txt files, or a data set's hub name.
        tokenizer: 'bundled', 'gpt2' (a hub name or a folder), 'train' (a BPE of this text), or a tokenizer.json.
        vocab_size: entries of a tokenizer that is trained, mask included.
        length: tokens per sequence (paper: 1024).
        cache: folder of tokenised texts; ``<output>/tokens`` if empty.
    """

    source: str = BUNDLED
    tokenizer: str = BUNDLED
    vocab_size: int = 2048
    length: int = 128
    cache: str = ""

    def __post_init__(self) -> None:
        check_count("--data.vocab-size", self.vocab_size, least=2)
        check_count("--data.length", self.length)


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
    """Documents of the bundled corpus, of a UTF-8 text file (one a line), of a folder of ``.txt`` files, or sequences
    of a FASTA file.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if the text is empty or not UTF-8.
    """
    if source == BUNDLED:
        packed = asset("sotu.txt.xz").read_bytes()
        return lzma.decompress(packed).decode("utf-8").splitlines()
    path = Path(source)
    if is_fasta(path):
        return list(read_fasta(path).values())
    if not path.exists() and not path.suffix:
        return _read_hub_dataset(source)
    if not path.exists():
        raise FileNotFoundError(
            f"no text at {source}: give --data.source a .txt file, a folder of .txt files, or 'bundled'"
        )
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    documents = [line for file in files for line in _read_text(file).splitlines() if line.strip()]
    if not documents:
        raise ValueError(f"no text in {source}: the file is empty, or the folder holds no .txt file with text")
    return documents


def _read_hub_dataset(name: str) -> list[str]:
    """The ``text`` column of a data set's training split, through the `datasets` library."""
    remedy = f"no text at {name}, and no data set of that name can be had; give --data.source a .txt file or a folder"
    try:
        from datasets import load_dataset

        return [row["text"] for row in load_dataset(name, split="train")]
    except ImportError as error:
        raise FileNotFoundError(f"{remedy}, or install discrete_distill[hub] for hub data sets") from error
    except Exception as error:  # The library raises errors of a dozen kinds when a name or the network fails.
        raise FileNotFoundError(f"{remedy} ({type(error).__name__})") from error


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
    folder = cache_dir / _fingerprint(source, tokenizer)
    if not _is_whole(folder):
        # Looked at before anything is written: text that is too short leaves nothing behind.
        fresh = {name: TokenStream(ids, length) for name, ids in _tokenise(source, tokenizer).items()}
        _write_tokens(fresh, folder)
    return {name: TokenStream(np.load(folder / f"{name}.npy", mmap_mode="r"), length) for name in SPLITS}


def _is_whole(folder: Path) -> bool:
    """Whether all splits are there as they were written; a file that vanished or was cut is made again."""
    try:
        counts = json.loads((folder / "done.json").read_text())
        return all(len(np.load(folder / f"{name}.npy", mmap_mode="r")) == counts[name] for name in SPLITS)
    except (OSError, ValueError, KeyError):
        return False


def _tokenise(source: str, tokenizer: TextTokenizer) -> dict[str, np.ndarray]:
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    tokens = {}
    for name, documents in split_documents(read_documents(source)).items():
        ids = [np.asarray([*row, tokenizer.eos_token_id], dtype=dtype) for row in tokenizer.encode(documents)]
        tokens[name] = np.concatenate(ids) if ids else np.zeros(0, dtype)
    return tokens


def _write_tokens(streams: dict[str, TokenStream], folder: Path) -> None:
    """Each split aside and renamed; the folder counts once ``done.json`` is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, stream in streams.items():
        partial = folder / f"{name}.partial.npy"
        np.save(partial, stream.ids)
        os.replace(partial, folder / f"{name}.npy")
    (folder / "done.json").write_text(json.dumps({name: len(stream.ids) for name, stream in streams.items()}))


def _fingerprint(source: str, tokenizer: TextTokenizer) -> str:
    """Changes when the text, its splitting or the tokenizer does."""
    parts = [repr(SPLIT_PATTERN), tokenizer.fingerprint(), source]
    if source != BUNDLED and Path(source).exists():
        root = Path(source)
        files = sorted(root.rglob("*.txt")) if root.is_dir() else [root]
        parts += [f"{f.resolve()}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
