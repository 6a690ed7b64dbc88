"""The documentation agrees with the project: versions, public names, figures."""

import ast
import doctest
import importlib
import importlib.util
import inspect
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import discrete_distill

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(discrete_distill.__file__).parents[1]
DOCS = ROOT / "docs"
if not DOCS.exists():
    pytest.skip("an installed package has no documentation beside it", allow_module_level=True)


def stated_versions() -> dict[str, tuple[str, str]]:
    """Lowest version and the one tested up to, by name, of the table on the page."""
    page = (DOCS / "installation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w ()`]+?) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    return {name.split()[0].lower(): (low, high) for name, low, high in rows}


def test_the_lowest_versions_on_the_page_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = dict(each.split(">=") for each in [*project["dependencies"], *project["optional-dependencies"]["gpu"]])
    bounds["python"] = project["requires-python"].removeprefix(">=")
    stated = stated_versions()
    assert set(stated) == {"python", "torch", "transformers", "triton"}
    assert {name: low for name, (low, _) in stated.items()} == {name: bounds[name] for name in stated}


def test_the_newest_versions_on_the_page_are_those_that_are_tested() -> None:
    pins = re.findall(r"^([\w-]+)==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    pythons = re.findall(r'"(3\.\d+)"', re.search(r"python: \[(.*)\]", workflow)[1])  # type: ignore[index]
    tested = {**dict(pins), "python": pythons[-1]}
    stated = stated_versions()
    assert {name: high for name, (_, high) in stated.items()} == {name: tested[name] for name in stated}
    assert pythons[0] == stated["python"][0]


def documented_modules() -> set[str]:
    pages = (DOCS / "reference" / "api").glob("*.md")
    return {name for page in pages for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)}


def test_every_part_with_public_names_has_a_page_of_the_api() -> None:
    package = ROOT / "discrete_distill"
    parts = set()
    for file in package.rglob("__init__.py"):
        assigned = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Assign)]
        if any(ast.unparse(node.targets[0]) == "__all__" for node in assigned):
            parts.add(".".join(file.parent.relative_to(ROOT).parts))
    # The names of the whole package are those of its parts; the options of methods are handed on by the methods.
    parts -= {"discrete_distill", "discrete_distill.distillation.methods.options"}
    assert parts <= documented_modules()
    for name in documented_modules():
        assert importlib.util.find_spec(name) is not None, name


def test_every_name_of_the_package_is_in_its_list_and_links_to_the_api() -> None:
    specification = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert specification is not None
    assert specification.loader is not None
    hooks = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hooks)
    listed = re.findall(r"`(\w+)`", (DOCS / "reference" / "index.md").read_text())
    for name in discrete_distill.__all__:
        assert name in listed, f"{name} is not in docs/reference/index.md"
        module, _, attribute = hooks.IDENTIFIERS[name].rpartition(".")
        assert module in documented_modules()
        assert getattr(importlib.import_module(module), attribute) is getattr(discrete_distill, name)


# Modules that need a library of an extra which the tests do not install.
OPTIONAL = {"discrete_distill.integrations.lm_eval": "lm_eval"}


def documented_names() -> dict[str, Any]:
    """Classes and functions on the pages of the API, by their full names."""
    found = {}
    absent = {name for name, needed in OPTIONAL.items() if importlib.util.find_spec(needed) is None}
    for module_name in documented_modules() - absent:
        module = importlib.import_module(module_name)
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
        for name in getattr(module, "__all__", [name for name in own if not name.startswith("_")]):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found[f"{module_name}.{name}"] = value
    return found


def test_every_public_name_has_a_docstring() -> None:
    assert not [name for name, value in documented_names().items() if not (value.__doc__ or "").strip()]


def test_every_public_class_but_exceptions_has_an_example_and_none_is_skipped_or_shown_as_prose() -> None:
    wrong = []
    for name, value in documented_names().items():
        examples = doctest.DocTestParser().get_examples(value.__doc__ or "")
        needed = inspect.isclass(value) and not issubclass(value, BaseException)
        skipped = any(doctest.SKIP in example.options for example in examples)
        prose = bool(examples) and "Examples:\n" not in value.__doc__  # The section that the site shows as code.
        if (needed and not examples) or skipped or prose:
            wrong.append(name)
    assert not wrong


@pytest.mark.parametrize("num_steps", [1, 2, 4, 16])
def test_the_figure_of_few_steps_shows_the_stated_probability_of_wrong_pairs(num_steps: int) -> None:
    from docs.figures.few_steps import sampled

    distribution = sampled(num_steps)
    assert float(distribution[0, 3] + distribution[1, 2]) == pytest.approx(0.48 / num_steps, abs=1e-9)
    assert float(distribution.sum()) == pytest.approx(1.0, abs=1e-9)


def test_words_of_the_masking_figure_never_come_back() -> None:
    from docs.figures.masking import SENTENCE, noised

    rows = noised()
    assert rows[0] == SENTENCE
    assert rows[-1] == [""] * len(SENTENCE)
    for earlier, later in pairwise(rows):
        assert all(word == before for before, word in zip(earlier, later, strict=True) if word)


@pytest.mark.parametrize("name", ["masking", "few_steps", "resolving"])
def test_figures_are_small_well_formed_files(name: str) -> None:
    file = DOCS / "figures" / f"{name}.svg"
    assert file.stat().st_size < 1_000_000
    assert ElementTree.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"
