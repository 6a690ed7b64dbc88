"""Documents of a text source: files and folders of text or JSON lines, FASTA, data sets of the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from .assets import BUNDLED, asset
from .fasta import is_fasta, read_fasta
from .files import plain_name, read_text

TEXT_SUFFIX, JSON_LINES_SUFFIX = ".txt", ".jsonl"
# Files of these kinds hold text among other things; read as they are, the other things would be learnt too.
NOT_TEXT = (".json", ".csv", ".tsv", ".parquet", ".arrow", ".zst", ".zip", ".tar", ".tgz", ".html", ".pdf", ".docx")
REMEDY = "give --data.source a .txt or .jsonl file, a folder of such files, or 'bundled'"


def read_documents(source: str) -> list[str]:
    """Read the documents of a source.

    These are the lines of a UTF-8 text file, the fields "text" of JSON lines, both of a whole folder, the sequences of
    a FASTA file, or the column "text" of a data set on the hub.
    """
    files = source_files(source)
    if not files:
        documents = _read_hub_dataset(source)
    elif is_fasta(files[0]):
        documents = list(read_fasta(files[0]).values())
    else:
        documents = [document for file in files for document in _documents_of(file) if document.strip()]
    if not documents:
        raise ValueError(f"no text in {source}: it is empty; {REMEDY}")
    return documents


def source_files(source: str) -> list[Path]:
    """Files that a source consists of, in order; none for a data set on the hub."""
    if source == BUNDLED:
        return [asset("sotu.txt.xz")]
    if not source:
        raise FileNotFoundError(f"no text is named: {REMEDY}")
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if _is_text(file) and file.is_file())
        if not files:
            raise ValueError(f"no text in {source}: the folder holds no .txt or .jsonl file; {REMEDY}")
        return files
    if not path.exists():
        if path.suffix or is_fasta(path) or path.is_absolute():
            raise FileNotFoundError(f"no text at {source}: {REMEDY}")
        return []
    if not path.is_file():
        raise ValueError(f"{source} is no regular file; {REMEDY}")
    if plain_name(path).endswith(NOT_TEXT):
        raise ValueError(f"{source} is no plain text: {REMEDY}")
    return [path]


def _is_text(file: Path) -> bool:
    return plain_name(file).endswith((TEXT_SUFFIX, JSON_LINES_SUFFIX))


def _documents_of(file: Path) -> Iterator[str]:
    text = read_text(file)
    if not plain_name(file).endswith(JSON_LINES_SUFFIX):
        yield from text.splitlines()
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f'{file}, line {number}: not a JSON object with a field "text"; convert it') from error
        if not isinstance(document, str):
            raise ValueError(f'{file}, line {number}: "text" is a {type(document).__name__}; make it a string')
        yield document.encode("utf-8", "replace").decode("utf-8")  # JSON can spell halves of characters.


def _read_hub_dataset(name: str) -> list[str]:
    """The ``text`` column of a data set's training split, through the `datasets` library; its code is never run."""
    remedy = f"no text at {name}, and no data set of that name can be had; give --data.source a .txt file or a folder"
    try:
        from datasets import load_dataset

        found = load_dataset(name, split="train", trust_remote_code=False)
    except ImportError as error:
        raise FileNotFoundError(f"{remedy}, or install discrete_distill[hub] for hub data sets") from error
    except Exception as error:  # The library raises errors of a dozen kinds when a name or the network fails.
        raise FileNotFoundError(f"{remedy} ({type(error).__name__})") from error
    if "text" not in found.column_names:
        raise ValueError(f'the data set {name} has no column "text" but {found.column_names}; convert it to .jsonl')
    return [row["text"] for row in found if row["text"].strip()]
