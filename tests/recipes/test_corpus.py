"""Text to token streams: nothing lost, nothing shared between splits, nothing left behind by bad input."""

from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from discrete_distill.recipes.common import corpus
from discrete_distill.recipes.common.corpus import (
    SPLITS,
    TokenStream,
    load_streams,
    read_documents,
    split_documents,
)
from discrete_distill.recipes.common.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["one two three four five six"], 270)


def written(folder: Path, lines: int = 60) -> Path:
    file = folder / "text.txt"
    file.write_text("".join(f"document {i} one two three\n" for i in range(lines)), encoding="utf-8")
    return file


# Reading.


def test_the_bundled_corpus_is_real_text() -> None:
    documents = read_documents("bundled")
    assert len(documents) > 100
    assert sum(map(len, documents)) > 1_000_000
    assert all(document.strip() for document in documents)


def test_a_file_is_one_document_a_line_and_blank_lines_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first\n\n  \nsecond née\n", encoding="utf-8")
    assert read_documents(str(tmp_path / "a.txt")) == ["first", "second née"]


def test_a_folder_is_all_its_text_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    for name, text in {"b.txt": "two", "a.txt": "one", "deeper/c.txt": "three", "notes.md": "no"}.items():
        (tmp_path / name).write_text(text)
    assert read_documents(str(tmp_path)) == ["one", "two", "three"]


def test_bad_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no text at absent"):
        read_documents("absent")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"no text in .*empty\.txt"):
        read_documents(str(tmp_path / "empty.txt"))
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8 text \(byte 3\)"):
        read_documents(str(tmp_path / "latin.txt"))


# Splitting.


@given(count=st.integers(40, 200))
def test_every_document_goes_to_exactly_one_split(count: int) -> None:
    documents = [f"document {i}" for i in range(count)]
    splits = split_documents(documents)
    assert set(splits) == set(SPLITS)
    assert Counter(d for split in splits.values() for d in split) == Counter(documents)
    assert all(splits.values())


def test_of_twenty_documents_thirteen_train_six_judge_and_one_is_held_out() -> None:
    splits = split_documents([str(i) for i in range(2000)])
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 1300,
        "judge": 600,
        "heldout": 100,
    }


def test_a_single_long_document_is_cut_without_loss() -> None:
    text = "".join(chr(ord("a") + i % 26) for i in range(4321))
    pieces = [piece for split in split_documents([text]).values() for piece in split]
    assert sum(map(len, pieces)) == len(text)
    assert all(piece in text for piece in pieces)
    assert len(pieces) >= 38
    assert all(split_documents([text]).values())


# Streams.


def test_crops_are_windows_of_the_stream_and_reach_all_of_it() -> None:
    stream = TokenStream(np.arange(20, dtype=np.uint16), 6)
    crops = stream.crops(500, generator=torch.Generator().manual_seed(0))
    assert crops.dtype == torch.int64
    assert torch.equal(crops - crops[:, :1], torch.arange(6).expand(500, 6))
    assert crops.unique().tolist()[:19] == list(range(19))


def test_crops_are_decided_by_the_generator() -> None:
    stream = TokenStream(np.arange(1000, dtype=np.uint16), 6)
    first, again, other = (stream.crops(8, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_packed_windows_are_consecutive_and_do_not_overlap() -> None:
    stream = TokenStream(np.arange(20, dtype=np.uint16), 6)
    assert torch.equal(stream.packed(), torch.arange(18).reshape(3, 6))
    assert torch.equal(stream.packed(limit=99), stream.packed())


def test_a_limit_thins_packed_windows_evenly() -> None:
    stream = TokenStream(np.arange(600, dtype=np.uint16), 6)
    assert (stream.packed(limit=4)[:, 0] // 6).tolist() == [0, 33, 66, 99]


def test_a_stream_shorter_than_a_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="6 tokens is too short for sequences of 6"):
        TokenStream(np.arange(6), 6)


def test_streams_hold_every_document_followed_by_an_end(tmp_path: Path) -> None:
    file = written(tmp_path)
    streams = load_streams(str(file), TOKENIZER, 4, tmp_path / "cache")
    expected = split_documents(read_documents(str(file)))
    for name in SPLITS:
        text = TOKENIZER.decode(streams[name].ids.tolist())
        assert text.split("\n\n") == [*expected[name], ""]
        assert (streams[name].ids == TOKENIZER.eos_token_id).sum() == len(expected[name])
        assert isinstance(streams[name].ids, np.memmap)
        assert streams[name].ids.dtype == np.uint16


def test_text_is_tokenised_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    tokenise = corpus._tokenise
    monkeypatch.setattr(corpus, "_tokenise", lambda *args: calls.append(1) or tokenise(*args))
    file = written(tmp_path)
    for _ in range(2):
        first = load_streams(str(file), TOKENIZER, 4, tmp_path / "cache")
    assert len(calls) == 1
    written(tmp_path, lines=80)
    second = load_streams(str(file), TOKENIZER, 4, tmp_path / "cache")
    assert len(calls) == 2
    assert len(second["train"].ids) > len(first["train"].ids)
    load_streams(str(file), train_tokenizer(["other"], 262), 4, tmp_path / "cache")
    assert len(calls) == 3


def test_a_cache_cut_short_is_made_again(tmp_path: Path) -> None:
    file = written(tmp_path)
    whole = load_streams(str(file), TOKENIZER, 4, tmp_path / "cache")["train"].ids.tolist()
    (done,) = tmp_path.rglob("done.json")
    done.unlink()
    done.with_name("train.npy").write_bytes(b"half")
    assert load_streams(str(file), TOKENIZER, 4, tmp_path / "cache")["train"].ids.tolist() == whole


def test_text_that_cannot_be_read_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="no text in"):
        load_streams(str(tmp_path / "empty.txt"), TOKENIZER, 4, tmp_path / "cache")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt"]
