"""Cached tokens are what was written, or are written again; several processes may write them at once."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from discrete_distill.recipes.common.corpus import SPLITS, TokenStream, load_streams
from discrete_distill.recipes.common.tokenizer import train_tokenizer
from discrete_distill.training.token_cache import INDEX_FILE, cached_arrays

TOKENIZER = train_tokenizer(["document one two three"], 270)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("".join(f"document {i} one two three\n" for i in range(60)), encoding="utf-8")
    return file


def tokens(text: Path) -> dict[str, list[int]]:
    streams = load_streams(str(text), TOKENIZER, 4, text.parent / "cache")
    return {name: stream.ids.tolist() for name, stream in streams.items()}


def overwrite(file: Path, array: np.ndarray) -> None:
    with file.open("wb") as stream:
        np.save(stream, array)


POISONS = {
    "beyond the vocabulary": lambda ids: np.where(np.arange(len(ids)) == 3, 60000, ids).astype(np.uint16),
    "negative": lambda ids: np.where(np.arange(len(ids)) == 3, -1, ids).astype(np.int64),
    "masks": lambda ids: np.full_like(ids, TOKENIZER.mask_token_id),
    "not a number": lambda ids: np.full(len(ids), np.nan),
    "two-dimensional": lambda ids: np.stack([ids, ids], axis=1),
    "bool": lambda ids: ids > 100,
    "complex": lambda ids: ids.astype(np.complex128),
    "strings": lambda ids: ids.astype(str),
    "other ids": lambda ids: ids[::-1],
}


@pytest.mark.parametrize("poison", POISONS)
def test_an_array_that_was_replaced_is_made_again(poison: str, text: Path) -> None:
    whole = tokens(text)
    (file,) = text.parent.rglob("train.npy")
    overwrite(file, POISONS[poison](np.array(whole["train"], dtype=np.uint16)))
    assert tokens(text) == whole


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"half"])
@pytest.mark.parametrize("name", ["train.npy", "heldout.npy"])
def test_a_file_that_was_cut_is_made_again(name: str, content: bytes, text: Path) -> None:
    whole = tokens(text)
    next(text.parent.rglob(name)).write_bytes(content)
    assert tokens(text) == whole


def test_every_flipped_bit_is_seen(text: Path) -> None:
    whole = tokens(text)
    (file,) = text.parent.rglob("heldout.npy")
    written = file.read_bytes()
    for position in range(0, len(written), 7):
        damaged = bytearray(written)
        damaged[position] ^= 1 << (position % 8)
        file.write_bytes(damaged)
        assert tokens(text) == whole
        assert file.read_bytes() == written


@pytest.mark.parametrize("content", ["", "null", "[]", "5", "[" * 100_000, "{}", '{"train": 5}', '"x"', "\xff"])
def test_an_index_that_is_none_is_written_again(content: str, text: Path) -> None:
    whole = tokens(text)
    (index,) = text.parent.rglob(INDEX_FILE)
    written = index.read_bytes()
    index.write_bytes(content.encode("latin-1"))
    assert tokens(text) == whole
    assert index.read_bytes() == written


def test_text_of_the_same_size_and_time_is_another_text(text: Path) -> None:
    import os

    first, stated = tokens(text), text.stat()
    text.write_text(text.read_text().replace("two", "owt"))
    os.utime(text, ns=(stated.st_atime_ns, stated.st_mtime_ns))
    assert text.stat().st_size == stated.st_size
    assert tokens(text) != first


def test_a_tokenizer_with_the_same_vocabulary_that_splits_otherwise_has_tokens_of_its_own(text: Path) -> None:
    from tokenizers import Tokenizer, normalizers

    from discrete_distill.recipes.common.tokenizer import TextTokenizer

    backend = Tokenizer.from_str(TOKENIZER.definition())
    backend.normalizer = normalizers.Replace("one", "two")
    other = TextTokenizer(backend)
    assert other.fingerprint() == TOKENIZER.fingerprint()
    first = tokens(text)
    second = load_streams(str(text), other, 4, text.parent / "cache")
    assert second["train"].ids.tolist() != first["train"]


def _build(folder: Path, barrier: object, failures: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    try:
        for round_index in range(20):
            found = cached_arrays(folder / str(round_index), SPLITS, lambda: {n: np.arange(5000) for n in SPLITS})
            assert all(np.array_equal(each.array, np.arange(5000)) for each in found.values())
    except BaseException as error:
        failures.put(repr(error))  # type: ignore[attr-defined]


def test_three_processes_build_one_cache_and_none_fails(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, failures = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_build, args=(tmp_path, barrier, failures)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert failures.empty(), failures.get()
    assert all(worker.exitcode == 0 for worker in workers)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {INDEX_FILE, *(f"{name}.npy" for name in SPLITS)}


def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("34242 requested and 1984 written")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match=r"train\.npy"):
        cached_arrays(tmp_path / "tokens", SPLITS, lambda: {name: np.arange(3) for name in SPLITS})
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "tokens.npy"
    overwrite(file, np.arange(5000, dtype=np.uint16))
    stream = TokenStream(np.load(file, mmap_mode="r"), 16)
    assert stream.crops(2).shape == (2, 16)
    with file.open("r+b") as opened:
        opened.truncate(200)
    with pytest.raises(OSError, match="shorter"):
        stream.crops(2)


def test_the_index_holds_a_hash_of_each_file(tmp_path: Path) -> None:
    import hashlib

    cached_arrays(tmp_path, ("one",), lambda: {"one": np.arange(3)})
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    assert index == {
        "one": hashlib.sha256((tmp_path / "one.npy").read_bytes()).hexdigest(),
        "content of one": hashlib.sha256(np.arange(3, dtype="<i8").tobytes()).hexdigest(),
    }
