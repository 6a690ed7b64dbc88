"""Runs the examples of all docstrings of the package: what a docstring shows must work.

An example begins with the public names of the packages that its file lies in, with the objects of the section "Names in
the examples" of docs/reference/index.md, made anew for every docstring, and with the object that it documents. It runs
in a folder of its own that is thrown away.
"""

from __future__ import annotations

import doctest
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from readme_snippets import ROOT, blocks_of, inside

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PAGE = ROOT / "docs" / "reference" / "index.md"


def shared_objects() -> CodeType:
    """The block of the page, which makes what all examples share."""
    page, section = PAGE.read_text(encoding="utf-8"), "## Names in the examples"
    line, source = blocks_of(page[page.index(section) :])[0]
    return compile("\n" * (page[: page.index(section)].count("\n") + line - 1) + source, str(PAGE), "exec")


def modules_with_examples() -> list[ModuleType]:
    """The modules of the package that show an example; those of an extra that is absent are named and left out."""
    files = [each for each in sorted((ROOT / "discrete_distill").rglob("*.py")) if ">>> " in each.read_text("utf-8")]
    paths = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    found = []
    for path in paths:
        try:
            found.append(importlib.import_module(".".join(path).removesuffix(".__init__")))
        except ImportError as error:
            if "pip install 'discrete_distill[" not in str(error):
                raise
            print(f"left out: {'.'.join(path)}, {error}")
    return found


def names_of(module: ModuleType, shared: CodeType) -> dict[str, Any]:
    """What the examples of a module begin with."""
    names: dict[str, Any] = {}
    exec(shared, names)
    parts = module.__name__.split(".")
    for depth in range(1, len(parts) + 1):
        package = importlib.import_module(".".join(parts[:depth]))
        names.update({name: getattr(package, name) for name in getattr(package, "__all__", ())})
    return names


def main() -> None:
    """Run all examples, or those of the modules whose names begin as the command line says."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    started, given, shared = time.perf_counter(), tuple(sys.argv[1:]), shared_objects()
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    count = 0
    for module in modules_with_examples():
        for test in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__):
            if not test.examples or not test.name.startswith(given or ""):
                continue
            own = test.name.removeprefix(f"{module.__name__}.").partition(".")[0]
            test.globs = {**names_of(module, shared), own: getattr(module, own), "__name__": "__main__"}
            with tempfile.TemporaryDirectory() as folder, inside(Path(folder)):
                runner.run(test, clear_globs=True)
            count += 1
    failed, tried = runner.summarize(verbose=False)
    print(f"{tried} lines of {count} examples ran in {time.perf_counter() - started:.1f} s, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
