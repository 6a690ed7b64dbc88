"""Make and run ``docs/quickstart.ipynb``, the notebook of the page ``docs/quickstart.md``.

``python tests/notebook.py`` runs the notebook in this environment and fails if a cell does, or if the notebook in the
repository has other cells than the page. With ``--write`` it is made anew from the page, with its output.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, NOTEBOOK = DOCS / "quickstart.md", DOCS / "quickstart.ipynb"
FENCE = re.compile(r"^```python[ \t]*\n(.*?)^```[ \t]*\n", re.MULTILINE | re.DOTALL)


def cells_of(page: str) -> list[tuple[str, str]]:
    """Kind and source of each cell: what stands between two blocks of Python is one cell of text.

    Args:
        page: Markdown.
    """
    pieces = FENCE.split(page)
    kinds = ["markdown", "code"] * len(pieces)
    return [(kind, text.strip("\n")) for kind, text in zip(kinds, pieces, strict=False) if text.strip()]


def notebook_of(page: str) -> nbformat.NotebookNode:
    """The page as a notebook without output; cells are numbered, so that it is the same at every call.

    Args:
        page: Markdown.
    """
    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    cells = [make[kind](text, id=f"cell-{index}") for index, (kind, text) in enumerate(cells_of(page))]
    return nbformat.v4.new_notebook(cells=cells)


def run(notebook: nbformat.NotebookNode) -> None:
    """Run all cells with the interpreter of this process; raises the error of a cell that fails."""
    manager = KernelManager(transport="ipc" if os.name == "posix" else "tcp")
    manager.kernel_spec.argv[0] = sys.executable
    NotebookClient(notebook, km=manager, timeout=1200, resources={"metadata": {"path": str(DOCS.parent)}}).execute()


def main() -> None:
    """Run the notebook, and write or compare it."""
    notebook = notebook_of(PAGE.read_text(encoding="utf-8"))
    if "--write" not in sys.argv[1:]:
        found = nbformat.read(NOTEBOOK, as_version=4)
        if [(cell.cell_type, cell.source) for cell in found.cells] != [
            (cell.cell_type, cell.source) for cell in notebook.cells
        ]:
            sys.exit(f"{NOTEBOOK} has other cells than {PAGE.name}; run python tests/notebook.py --write")
    started = time.perf_counter()
    run(notebook)
    if "--write" in sys.argv[1:]:
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":  # Warnings name folders of the machine.
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
        nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.name}: {len(notebook.cells)} cells ran in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
