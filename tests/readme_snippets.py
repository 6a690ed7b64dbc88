"""Runs the Python of README.md and of all pages in docs/, page by page: what the documentation shows must work.

The blocks of a page run in order and share their names, in a folder of their own that is thrown away. A block that
cannot run says why in its fence: ``python title="Not run here: 16 GB of weights"``. A page with a notebook beside it
is left to tests/notebook.py, unless it is named.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_RUN = re.compile(r'^```python(?![ \t]*$)(?! title="Not run here: [^"]+"$).*$', re.MULTILINE)
FENCE = re.compile(r"^```python[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def blocks_of(page: str) -> list[tuple[int, str]]:
    """Line number and source of every block that is to run."""
    return [(page[: match.start(1)].count("\n") + 1, match[1]) for match in FENCE.finditer(page)]


def run_page(file: Path) -> int:
    """Run a page's blocks; returns how many there were. Tracebacks name lines of the page itself."""
    names: dict[str, object] = {"__name__": "__main__"}
    page = file.read_text(encoding="utf-8")
    if unexplained := NOT_RUN.search(page):
        raise SystemExit(f'{file}: give {unexplained[0]!r} a title="Not run here: REASON", or let it run')
    blocks = blocks_of(page)
    with tempfile.TemporaryDirectory() as folder, inside(Path(folder)):
        for line, source in blocks:
            exec(compile("\n" * (line - 1) + source, str(file), "exec"), names)
    return len(blocks)


@contextlib.contextmanager
def inside(folder: Path):  # type: ignore[no-untyped-def]
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def main() -> None:
    """Run the pages named on the command line, or all of them."""
    given = [Path(name).resolve() for name in sys.argv[1:]]
    pages = sorted(page for page in (ROOT / "docs").rglob("*.md") if not page.with_suffix(".ipynb").exists())
    for file in given or [ROOT / "README.md", *pages]:
        started = time.perf_counter()
        count = run_page(file)
        print(f"{file.name}: {count} snippets ran in {time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
