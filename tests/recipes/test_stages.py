"""Recipes are compositions of stages: what is missing is named before any starts, and no room imports one above it."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest

import discrete_distill.recipes
from discrete_distill.recipes.common.settings import RecipeConfig
from discrete_distill.recipes.common.stages import Recipe, Stage
from discrete_distill.recipes.text.run import text_run

ROOT = Path(discrete_distill.recipes.__file__).parent
ROOMS = {"common": 0, "text": 1, "protein": 1, "compare": 2}


def imported_rooms(file: Path) -> set[str]:
    """Rooms of the recipes that a file imports."""
    nodes = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    return {(node.module or "").split(".")[0] for node in nodes if node.level == 2} & set(ROOMS)


def test_no_room_imports_one_beside_or_above_it() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {room}"
        for name, floor in ROOMS.items()
        for file in sorted((ROOT / name).glob("*.py"))
        for room in sorted(imported_rooms(file))
        if ROOMS[room] >= floor
    ]
    assert not wrong, "\n".join(wrong)
    assert imported_rooms(ROOT / "text" / "recipe.py") == {"common"}


def missing(name: str):
    def need() -> None:
        raise FileNotFoundError(f"no\n{name}")

    return need


@pytest.fixture
def recipe(tmp_path: Path) -> tuple[Recipe, list[str]]:
    """Two stages that note that they ran; the second reads what the first wrote."""
    ran: list[str] = []
    stages = {
        "first": Stage(run=lambda: ran.append("first"), reads_corpus=False),
        "second": Stage(run=lambda: ran.append("second"), inputs=(missing("output of the first"),), reads_corpus=False),
    }
    run = text_run(RecipeConfig(output=tmp_path, precision="fp32"), "command")
    return Recipe(run=run, stages=stages, default=("first", "second")), ran


def test_inputs_are_asked_of_the_first_stage_alone_and_nothing_starts_without_them(recipe, tmp_path) -> None:
    made, ran = recipe
    made.execute("all")
    assert ran == ["first", "second"]
    ran.clear()
    with pytest.raises(ValueError, match="no output of the first"):
        made.execute("second")
    assert ran == []


def test_all_that_is_missing_is_named_at_once_and_nothing_is_written(recipe, tmp_path) -> None:
    made, ran = recipe
    needs = (missing("teacher"), missing("judge"), missing("teacher"))
    stages = {**made.stages, "first": replace(made.stages["first"], needs=needs)}
    with pytest.raises(ValueError, match=r"^no teacher; no judge$"):
        replace(made, stages=stages).execute("all")
    assert ran == []
    assert list(tmp_path.iterdir()) == []


def test_a_missing_text_is_named_with_what_else_is_missing(recipe, tmp_path) -> None:
    made, _ = recipe
    made.run.config.data.source = str(tmp_path / "none.txt")
    stages = {"first": replace(made.stages["first"], needs=(missing("teacher"),), reads_corpus=True)}
    with pytest.raises(ValueError, match=r"no teacher; .*none\.txt.*--data\.source"):
        replace(made, stages=stages).check(("first",))


def test_a_dry_run_runs_nothing_and_names_what_is_missing(recipe, capsys) -> None:
    made, ran = recipe
    made.run.config.dry_run = True
    replace(made, note="a note").execute("second")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "a note"
    assert "missing: no output of the first" in said
    assert ran == []
