"""The package as a whole: quick to import, floors in order, everything that it names is there."""

import ast
import importlib.metadata
import importlib.resources
import json
import subprocess
import sys
from pathlib import Path

import pytest

import discrete_distill

PACKAGE = Path(discrete_distill.__file__).parent

# Each part of the package, and the floor it stands on; it may import floors below, and itself.
FLOORS = {
    "checks": 0,
    "collective": 0,
    "streams": 0,
    "kernels": 0,
    "process": 1,
    "canvas": 2,
    "rollout": 3,
    "rewards": 3,
    "exact": 3,
    "divergence": 4,
    "models": 5,
    "samplers": 6,
    "matching": 6,
    "probe": 6,
    "methods": 7,
    "training": 8,
    "evaluation": 8,
    "recipes": 9,
    "integrations": 9,
}


def in_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_is_quick_and_leaves_heavy_libraries_alone() -> None:
    """At most 1.5 s over torch itself, in the best of three processes."""
    code = """
import json, sys, time
import torch
started = time.perf_counter()
import discrete_distill
seconds = time.perf_counter() - started
heavy = [name for name in ("transformers", "peft", "triton", "accelerate", "matplotlib") if name in sys.modules]
print(json.dumps({"seconds": seconds, "heavy": heavy}))
"""
    seconds = []
    while len(seconds) < 3 and not (seconds and seconds[-1] < 1.5):
        run = json.loads(in_fresh_python(code))
        assert run["heavy"] == []
        seconds.append(run["seconds"])
    assert min(seconds) < 1.5


def test_every_public_name_is_there() -> None:
    names = discrete_distill.__all__
    assert {"MaskedDiffusion", "LogLinearSchedule", "AncestralSampler", "DiDiInstruct"} <= set(names)
    assert len(names) == len(set(names))
    for name in names:
        assert getattr(discrete_distill, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = discrete_distill.no_such_name  # type: ignore[attr-defined]


def test_the_package_is_typed_and_ships_its_corpus_with_its_notice() -> None:
    files = importlib.resources.files("discrete_distill")
    assert (files / "py.typed").is_file()
    assert (files / "recipes" / "bundled" / "sotu.txt.xz").is_file()
    assert (files / "recipes" / "bundled" / "NOTICE").read_text().strip()


def test_the_installed_metadata_names_the_licence() -> None:
    metadata = importlib.metadata.metadata("discrete_distill")
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"


def imported_parts(file: Path) -> set[str]:
    """Parts of this package that a file imports, wherever in it."""
    here = ("discrete_distill", *file.relative_to(PACKAGE).with_suffix("").parts)
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        parts = [name.split(".") for name in names]
        found |= {name[1] for name in parts if name[0] == "discrete_distill" and len(name) > 1}
    return found & set(FLOORS)


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def test_every_part_has_a_floor() -> None:
    parts = {part_of(file) for file in PACKAGE.rglob("*.py")} - {"__init__"}
    assert parts <= set(FLOORS)
    assert len(parts) >= 5


def test_each_floor_imports_only_floors_below() -> None:
    wrong = [
        f"{file.relative_to(PACKAGE)} imports {part}"
        for file in sorted(PACKAGE.rglob("*.py"))
        if file != PACKAGE / "__init__.py"
        for part in sorted(imported_parts(file))
        if part != part_of(file) and FLOORS[part] >= FLOORS[part_of(file)]
    ]
    assert not wrong, "\n".join(wrong)
    assert imported_parts(PACKAGE / "process" / "masking.py") == {"kernels", "process"}
