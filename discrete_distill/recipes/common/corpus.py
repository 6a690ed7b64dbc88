"""Text to token streams: documents are read, split, tokenised once into a memory map, and cut to length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from ... import draws
from ...checks import check_count
from ...samplers import Frame
from ...training.stored_settings import Setting
from ...training.token_cache import cached_arrays, content_digest, is_cut
from .assets import BUNDLED
from .documents import read_documents, source_files
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
        source: 'bundled', a UTF-8 text file (one document a line), JSON lines with a field "text", a folder of such
            files (.txt, .jsonl), each plain or compressed (.gz, .xz, .bz2), or a data set's hub name.
        tokenizer: 'bundled', 'gpt2' (a hub name or a folder), 'train' (a BPE of this text), or a tokenizer.json. A
            Hugging Face teacher is read with its own tokenizer.
        vocab_size: entries of a tokenizer that is trained, mask included.
        length: tokens per sequence, those of a model's frame included, such as [CLS] and [SEP] (paper: 1024).
        cache: folder of tokenised texts; ``<output>/tokens`` if empty.
    """

    source: str = BUNDLED
    tokenizer: str = BUNDLED
    vocab_size: int = 2048
    length: int = 128
    cache: str = ""

    def __post_init__(self) -> None:
        check_count("--data.vocab-size", self.vocab_size, minimum=2)
        check_count("--data.length", self.length)


class SequenceStream(Protocol):
    """What networks learn: sequences of one length.

    Attributes:
        length: of a sequence, in tokens, prefix and suffix included.
        shape: what a sampler draws.
    """

    @property
    def length(self) -> int: ...

    @property
    def shape(self) -> int | Frame: ...

    def text_mask(self) -> Tensor:
        """True at what is learned; bool ``[L]``."""
        ...

    def settings(self) -> dict[str, Setting]:
        """The stream as settings of a run, so that a run that is resumed on another one is refused."""
        ...

    def crops(self, batch_size: int, *, generator: Generator | None = None) -> Tensor:
        """Random sequences, int64 ``[B, L]``."""
        ...

    def packed(self, limit: int, /) -> Tensor:
        """At most ``limit`` sequences, the same at every call, int64 ``[N, L]``."""
        ...


@dataclass
class TokenStream:
    """Documents of one split, joined by end-of-text tokens.

    Args:
        ids: one flat array of token ids, ``[T]``.
        length: of a sequence, in tokens, prefix and suffix included.
        digest: `content_digest` of the ids, where it is known; see `text_digest`.
        prefix: ids before the text of every sequence.
        suffix: ids behind it.

    Raises:
        ValueError: if there are too few tokens for one sequence, or prefix and suffix leave no room for text.
    """

    ids: np.ndarray
    length: int
    digest: str = ""
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.text_length < 1:
            raise ValueError(
                f"--data.length {self.length} leaves no room for text between the {len(self.prefix)} and "
                f"{len(self.suffix)} special tokens around it; raise it"
            )
        if len(self.ids) < self.length + 1:
            raise ValueError(
                f"a split of {len(self.ids)} tokens is too short for sequences of {self.length}; give more text"
            )

    @property
    def text_length(self) -> int:
        """Tokens of text in a sequence."""
        return self.length - len(self.prefix) - len(self.suffix)

    @property
    def shape(self) -> int | Frame:
        """What a sampler draws: sequences of a length, in the frame of special tokens where there is one."""
        if not self.prefix and not self.suffix:
            return self.length
        return Frame(self.text_length, prefix=self.prefix, suffix=self.suffix)

    def text_mask(self) -> Tensor:
        """True at text, false at prefix and suffix; bool ``[L]``."""
        mask = torch.zeros(self.length, dtype=torch.bool)
        mask[len(self.prefix) : self.length - len(self.suffix)] = True
        return mask

    def text_digest(self) -> str:
        """SHA-256 of all ids, in hexadecimal, whatever their integer type; taken once."""
        if not self.digest:
            self.digest = content_digest(self.ids)
        return self.digest

    def settings(self) -> dict[str, Setting]:
        """The stream as settings of a run, so that a run that is resumed on other text is refused.

        Returns:
            ``text.length``, ``text.tokens`` and ``text.digest``, whatever the integer type of the ids.
        """
        return {
            "text.length": self.length,
            "text.tokens": len(self.ids),
            "text.digest": self.text_digest()[:16],
        }

    def crops(self, batch_size: int, *, generator: Generator | None = None) -> Tensor:
        """``batch_size`` windows at uniform offsets, int64 ``[B, L]``."""
        device = "cpu" if generator is None else generator.device
        starts = draws.randint(len(self.ids) - self.text_length, (batch_size,), device=device, generator=generator)
        return self._windows(starts.tolist())

    def packed(self, limit: int | None = None) -> Tensor:
        """Consecutive windows that do not overlap, evenly thinned to at most ``limit``, int64 ``[N, L]``."""
        count = len(self.ids) // self.text_length
        kept = np.arange(count) if limit is None or limit >= count else np.linspace(0, count - 1, limit).astype(int)
        return self._windows([int(k) * self.text_length for k in kept])

    def _windows(self, starts: Iterable[int]) -> Tensor:
        if is_cut(self.ids):
            raise OSError("the file of tokens became shorter while it was in use; run again to make it anew")
        texts = [np.asarray(self.ids[start : start + self.text_length], dtype=np.int64) for start in starts]
        rows = np.stack(texts)
        ends = [np.tile(np.asarray(each, dtype=np.int64), (len(rows), 1)) for each in (self.prefix, self.suffix)]
        return torch.from_numpy(np.concatenate([ends[0], rows, ends[1]], axis=1))


def split_documents(documents: list[str]) -> dict[str, list[str]]:
    """By document, in a fixed pattern of twenty; a handful of documents is first cut into pieces of equal length.

    Returns:
        Documents, or pieces of one, by split.
    """
    if len(documents) < 2 * len(SPLIT_PATTERN):
        size = max(1, -(-sum(map(len, documents)) // (2 * len(SPLIT_PATTERN))))
        documents = [text[i : i + size] for text in documents for i in range(0, len(text), size)]
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for index, document in enumerate(documents):
        splits[SPLIT_PATTERN[index % len(SPLIT_PATTERN)]].append(document)
    return splits


def load_streams(source: str, tokenizer: TextTokenizer, length: int, cache_dir: Path) -> dict[str, TokenStream]:
    """Token streams of every split of a text, tokenised once, then memory-mapped from ``cache_dir``.

    Tokens are found again by a hash of the text, the tokenizer and the way of splitting. Their files are hashed at
    every start, so that damaged ones are made again.

    Raises:
        FileNotFoundError: if there is no such text.
        ValueError: if it cannot be read, is too short, or cannot be encoded.
        OSError: if the tokens cannot be written.
    """

    def stream(ids: np.ndarray, digest: str = "") -> TokenStream:
        return TokenStream(ids, length, digest, prefix=tokenizer.prefix, suffix=tokenizer.suffix)

    def make() -> dict[str, np.ndarray]:
        tokens = _tokenise(source, tokenizer)
        for ids in tokens.values():  # Looked at before anything is written: a text that is too short leaves nothing.
            stream(ids)
        return tokens

    arrays = cached_arrays(cache_dir / _fingerprint(source, tokenizer), SPLITS, make)
    return {name: stream(found.array, found.digest) for name, found in arrays.items()}


def _tokenise(source: str, tokenizer: TextTokenizer) -> dict[str, np.ndarray]:
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    tokens = {}
    for name, documents in split_documents(read_documents(source)).items():
        rows = [np.asarray([*row, tokenizer.eos_token_id], dtype=dtype) for row in tokenizer.encode(documents)]
        ids = np.concatenate(rows) if rows else np.zeros(0, dtype)
        if len(ids) and (int(ids.max()) >= tokenizer.vocab_size or bool((ids == tokenizer.mask_token_id).any())):
            raise ValueError(f"the tokenizer gives the text of {source} masks or ids outside of its vocabulary")
        tokens[name] = ids
    return tokens


def _fingerprint(source: str, tokenizer: TextTokenizer) -> str:
    """Hash of the text, its splitting and the tokenizer; of a data set on the hub, of its name."""
    digest = hashlib.sha256("\n".join(["2", repr(SPLIT_PATTERN), tokenizer.definition()]).encode())
    files = source_files(source)
    if not files:
        digest.update(source.encode())
    for file in files:
        digest.update(f"\n{''.join(file.suffixes)}:{file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(2**24):
                digest.update(chunk)
    return digest.hexdigest()[:16]
