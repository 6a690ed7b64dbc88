"""Text files as they come: byte order marks, compression, formats that are no text, and files that never end."""

import bz2
import gzip
import json
import lzma
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from discrete_distill.files import read_json_object, write_text
from discrete_distill.recipes.common.corpus import split_documents
from discrete_distill.recipes.common.documents import read_documents
from discrete_distill.recipes.common.fasta import read_fasta
from discrete_distill.recipes.common.files import read_text

PACKERS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, "": bytes}


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_byte_order_mark_is_no_text_compressed_or_not(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.txt{suffix}"
    file.write_bytes(PACKERS[suffix]("\ufeffHello\nWörld\n".encode()))
    assert read_documents(str(file)) == ["Hello", "Wörld"]


def test_a_byte_order_mark_alone_is_an_empty_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(ValueError, match=r"a\.txt"):
        read_documents(str(tmp_path / "a.txt"))


@pytest.mark.parametrize("make", ["pipe", "device", "link to a device"])
def test_what_never_ends_is_not_read(make: str, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    if make == "pipe":
        os.mkfifo(file)
    elif make == "device":
        file = Path("/dev/zero")
    else:
        file.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=str(file)):
        read_documents(str(file))
    with pytest.raises(ValueError, match=str(file)):
        read_text(file)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2"])
def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.txt{suffix}"
    file.write_bytes(PACKERS[suffix](b"a" * 70_000_000))
    with pytest.raises(ValueError, match="unpacks to more"):
        read_text(file)
    whole = PACKERS[suffix](b"text " * 1000)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be unpacked"):
        read_text(file)


def test_text_of_two_bytes_a_character_is_refused(tmp_path: Path) -> None:
    for encoding in ("utf-16", "utf-16-le"):
        (tmp_path / "a.txt").write_bytes("hello".encode(encoding))
        with pytest.raises(ValueError, match="not UTF-8"):
            read_documents(str(tmp_path / "a.txt"))


def test_json_lines_give_their_text(tmp_path: Path) -> None:
    texts = ["one\ntwo", "three\u2028four", "  ", "five"]
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"id": 1, "text": text}, ensure_ascii=False) + "\n" for text in texts))
    assert read_documents(str(file)) == [texts[0], texts[1], texts[3]]


@pytest.mark.parametrize("line", ['{"content": "x"}', "[1]", "5", '{"text": 5}', "{", "text", "[" * 100_000])
def test_json_lines_without_text_are_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read_documents(str(file))


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.parquet", "a.jsonl.zst", "a.zip", "a.json.gz"])
def test_files_that_hold_more_than_text_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(ValueError, match="no plain text"):
        read_documents(str(tmp_path / name))


def test_a_folder_is_read_with_its_json_lines_and_compressed_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "two"}\n'))
    (tmp_path / "c.txt.xz").write_bytes(lzma.compress(b"three"))
    (tmp_path / "d.json").write_text("{}")
    assert read_documents(str(tmp_path)) == ["one", "two", "three"]


def test_a_data_set_without_a_text_column_is_named_and_its_code_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows(list):
        column_names = ["text"]

    asked = {}
    library = ModuleType("datasets")
    rows = Rows([{"text": "one"}, {"text": " "}, {"text": "two"}])
    library.load_dataset = lambda name, **settings: asked.update(settings) or rows  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert read_documents("some/data") == ["one", "two"]
    assert asked["trust_remote_code"] is False
    rows.column_names = ["content"]
    with pytest.raises(ValueError, match="content"):
        read_documents("some/data")


def test_a_handful_of_documents_is_cut_within_each_and_nothing_is_added() -> None:
    documents = ["ACDE" * 100, "FGHI" * 50, "K" * 7]
    pieces = [piece for split in split_documents(documents).values() for piece in split]
    assert sorted("".join(pieces)) == sorted("".join(documents))
    assert all(any(piece in document for document in documents) for piece in pieces)
    assert max(map(len, pieces)) == -(-607 // 40)


# FASTA.


def test_fasta_as_databases_write_it(tmp_path: Path) -> None:
    text = "\ufeff; a comment\n>a first\nACDE*\n\n>b\nfg\nHI\n>x\nAXC\n>u\nMUK\n>stop\nAC*DE\n>gap\nA-C\n>z\r\nKLM\r\n"
    for suffix, pack in PACKERS.items():
        file = tmp_path / f"p.fasta{suffix}"
        file.write_bytes(pack(text.encode()))
        with pytest.warns(UserWarning, match="4 of 7"):
            assert read_fasta(file) == {"a": "ACDE", "b": "FGHI", "z": "KLM"}


def test_fasta_without_a_usable_protein_says_how_many_were_left_out(tmp_path: Path) -> None:
    (tmp_path / "p.fa").write_text(">a\nXXX\n>b\nAUC\n")
    with pytest.raises(ValueError, match="2 with other codes"):
        read_fasta(tmp_path / "p.fa")


# JSON.


@pytest.mark.parametrize("content", ["null", "[]", "5", '"x"', "", "{", "[" * 100_000])
def test_what_is_no_json_object_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        read_json_object(tmp_path / "a.json")


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.json", "first")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"a\.json"):
        write_text(tmp_path / "a.json", "second")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "first"}


def test_a_pipe_is_no_json(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"a\.json"):
        read_json_object(tmp_path / "a.json")


def test_half_a_character_in_json_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one \\ud83d two"}\n')
    (document,) = read_documents(str(tmp_path / "a.jsonl"))
    assert document == "one ? two"


def test_no_source_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_documents("")
