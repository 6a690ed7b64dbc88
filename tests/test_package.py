"""The package as a whole: light to import, floors in order, everything that it names is there."""

import ast
import importlib.metadata
import importlib.resources
import json
import subprocess
import sys
from pathlib import Path

import pytest

import discrete_distill

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

PACKAGE = Path(discrete_distill.__file__).parent
ROOT = PACKAGE.parent

# Each part of the package, and the floor it stands on; it may import floors below, and itself.
FLOORS = {
    "checks": 0,
    "draws": 0,
    "digests": 0,
    "files": 0,
    "streams": 0,
    "kernels": 1,
    "process": 2,
    "distributed": 3,
    "exact": 3,
    "models": 4,
    "samplers": 5,
    "distillation": 6,
    "training": 7,
    "evaluation": 7,
    "recipes": 8,
    "integrations": 8,
}


def in_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = (
    "torch_struct",
    "transformers",
    "peft",
    "triton",
    "accelerate",
    "matplotlib",
    "datasets",
    "lightning",
    "scipy",
    "gguf",
    "tyro",
)


def test_importing_the_package_leaves_heavy_libraries_alone() -> None:
    code = f"""
import json, sys, torch
before = set(sys.modules)
import discrete_distill
print(json.dumps([name for name in {HEAVY} if name in set(sys.modules) - before]))
"""
    assert json.loads(in_fresh_python(code)) == []


def exact_lowest_versions() -> dict[str, str]:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return dict(pins)


def test_the_lowest_versions_are_the_bounds_of_the_project() -> None:
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("an installed package has no pyproject.toml beside it")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    bounds = dict(requirement.split(">=") for requirement in stated)
    pinned = exact_lowest_versions()
    assert set(bounds) <= set(pinned)
    for name, bound in bounds.items():
        version = pinned[name]
        assert version == bound or version.startswith(f"{bound}."), f"{name}: bound {bound}, lowest tested {version}"


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
    assert imported_parts(PACKAGE / "process" / "masking.py") == {"checks", "draws", "process"}
